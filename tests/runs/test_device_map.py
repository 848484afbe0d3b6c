"""`--device_map`: what does not go with it, where a model came to lie, and a run of it where there is one device."""

import pytest
import torch
from torch import nn

import xgblora
from xgblora.errors import InputError
from xgblora.runs.device_map import check_device_map, placement
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.task_flags import TaskArguments


@pytest.mark.parametrize(
    ("flags", "variables", "message"),
    [
        ({"full": True}, {}, "device_map=auto: --full trains one block of numbers on one device; leave it out, or"),
        ({}, {"WORLD_SIZE": "2"}, "device_map=auto: spreads one model over all devices, and there are 2 processes;"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_one_line(monkeypatch, flags, variables, message):
    args = XGBLoRAArguments(output_dir="unused", use_cpu=True, **flags)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_device_map(TaskArguments(), args)
    with pytest.raises(InputError, match=message) as raised:
        check_device_map(TaskArguments(device_map="auto"), args)
    assert "\n" not in str(raised.value)


def test_a_line_says_where_the_blocks_lie_whatever_their_adapters_do(make_opt):
    model = make_opt(num_hidden_layers=4)
    assert placement(model) == "all on cpu"
    xgblora.attach(model, alpha=4.0)
    for block in model.get_decoder().layers[1:]:
        for module in block.modules():
            for name in module._parameters.keys() - {"a", "b"}:
                setattr(module, name, nn.Parameter(getattr(module, name).to("meta"), requires_grad=False))
    assert placement(model) == "layers on cpu 0, meta 1-3"


def test_on_one_device_a_run_is_bit_for_bit_the_run_without_it(run):
    flags = "--max_steps=4", "--xgblora_steps_per_iteration=2", "--num_eval=2", "--eval_strategy=no"
    plain, spread = run(*flags), run(*flags, "--device_map=auto")
    assert spread.losses == plain.losses
    assert (spread.folder / "tape.bin").read_bytes() == (plain.folder / "tape.bin").read_bytes()
    weights = plain.weights()
    assert all(torch.equal(weights.pop(name), found) for name, found in spread.weights().items()) and not weights
    assert any("Device map" in line and "auto: all on cpu" in line for line in spread.log)
    assert not any("Device map" in line for line in plain.log)
