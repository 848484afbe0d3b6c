"""Which block is the first to hold an adapter, as far as the lists of a model tell."""

import pytest
from torch import nn

import xgblora
from xgblora.adapters import Depths
from xgblora.adapters.depth import first_block

LAYERS = "model.decoder.layers"


@pytest.fixture
def adapters(make_opt):
    return xgblora.attach(make_opt(num_hidden_layers=4), alpha=1.0, depths=Depths(0.5, 1.0))


def test_the_first_block_is_that_of_the_lowest_adapter(adapters):
    assert adapters.first_block() == f"{LAYERS}.2"


def test_what_the_round_does_not_train_is_not_read(adapters):
    (last,) = [name for name in adapters.layers if name.endswith("3.self_attn.q_proj")]
    adapters.arena.train([last])
    assert adapters.first_block() == f"{LAYERS}.3"
    assert adapters.first_block(in_use=False) == f"{LAYERS}.2"
    adapters.arena.train()
    assert adapters.first_block() == f"{LAYERS}.2"


def test_nothing_runs_before_the_first_block_of_all_and_before_full_parameters(make_opt):
    assert xgblora.attach(make_opt(), alpha=1.0).first_block() == ""
    assert xgblora.FullParameters(make_opt()).first_block() == ""


@pytest.mark.parametrize("names", [[], ["head"], ["one.1", "head"], ["one.1", "other.1"]])
def test_without_blocks_of_one_list_none_is_known(names):
    layers = {name: nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]) for name in ("one", "other")}
    model = nn.ModuleDict({**layers, "head": nn.Linear(2, 2)})
    assert first_block(model, ["one.1.x", "one.1.y"]) == "one.1"
    assert first_block(model, [f"{name}.weight" if "." in name else name for name in names]) == ""
