"""Depths: what a range is written as, which layers lie in it, and which block is the first to hold an adapter."""

import pytest
from torch import nn

import xgblora
from xgblora.adapters import Depths
from xgblora.adapters.depth import first_block
from xgblora.errors import InputError

LAYERS = "model.decoder.layers"


@pytest.mark.parametrize(
    ("text", "depths"), [("0.5:1.0", Depths(0.5, 1.0)), ("0:1", Depths()), (".25:0.75", Depths(0.25, 0.75))]
)
def test_it_is_written_as_start_and_stop(text, depths):
    assert Depths.parse(text) == depths
    assert Depths.parse(str(depths)) == depths


@pytest.mark.parametrize("text", ["", "0.5", "0.5-1.0", "a:b", "0.5:", "0.1:0.5:1.0", ".:1", "1..0:2"])
def test_other_texts_are_refused(text):
    with pytest.raises(InputError, match=r"^xgblora_layers=.*: must be START:STOP, such as 0.5:1.0 for the"):
        Depths.parse(text)


@pytest.mark.parametrize("text", ["0.5:0.5", "0.7:0.3", "0.5:1.1", "-0.5:1.0", "nan:1.0"])
def test_a_range_that_is_empty_or_outside_is_refused(text):
    with pytest.raises(InputError, match=rf"^xgblora_layers={text}: must be START:STOP with 0 <= START < STOP <= 1"):
        Depths.parse(text)


def blocks_of(names):
    return {int(name.split(".layers.")[1].split(".")[0]) for name in names}


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("0.5:1", {2, 3}),
        ("0:0.5", {0, 1}),
        ("0.25:0.75", {1, 2}),
        ("0.6:1", {2, 3}),
        ("0.7:1", {3}),
        ("0:1", {0, 1, 2, 3}),
    ],
)
def test_blocks_belong_where_their_middle_lies(make_opt, text, blocks):
    model = make_opt(num_hidden_layers=4)
    adapters = xgblora.attach(model, ["q_proj", "fc1"], alpha=2.0, depths=Depths.parse(text))
    assert blocks_of(adapters.layers) == blocks
    assert len(adapters.layers) == 2 * len(blocks)
    assert adapters.origin.layers == tuple(adapters.layers)


def test_each_list_of_blocks_is_counted_for_itself_and_what_is_outside_stays_out():
    layers = [nn.Linear(2, 2) for _ in range(7)]
    model = nn.ModuleDict(
        {"encoder": nn.ModuleList(layers[:4]), "decoder": nn.ModuleList(layers[4:6]), "out": layers[6]}
    )
    names = [*(f"encoder.{number}" for number in range(4)), "decoder.0", "decoder.1", "out"]
    assert Depths(0.5, 1.0).within(model, names) == ["encoder.2", "encoder.3", "decoder.1"]
    assert Depths().within(model, names) == names


def test_a_list_inside_a_block_is_part_of_it():
    blocks = nn.ModuleList(
        nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(4))}) for _ in range(2)
    )
    names = [name for name, module in blocks.named_modules() if isinstance(module, nn.Linear)]
    model = nn.ModuleDict({"layers": blocks})
    kept = Depths(0.5, 1.0).within(model, [f"layers.{name}" for name in names])
    assert kept == [f"layers.1.experts.{number}" for number in range(4)]


def test_where_none_is_left_it_says_so(make_opt):
    with pytest.raises(InputError, match=r"^xgblora_layers=0.0:0.1: none of the 4 target layers lies there$"):
        xgblora.attach(make_opt(), alpha=2.0, depths=Depths(0.0, 0.1))


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
