"""What attaching says about memory."""

import logging

import pytest
import torch
from torch import nn

import xgblora
from xgblora.adapters.memory import Memory, memory_of


@pytest.mark.parametrize(("dtype", "remainders"), [(torch.float32, 0), (torch.bfloat16, 2), (torch.float16, 2)])
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_bytes_of_mergeable_layers(make_base, kind, dtype, remainders):
    model = nn.ModuleDict({"first": make_base(kind, 10, 6), "second": make_base(kind, 4, 8)}).to(dtype)
    adapters = xgblora.attach(model, ["first", "second"], alpha=1.0)
    size = (60 + 32) * torch.finfo(dtype).bits // 8
    memory = memory_of(adapters)
    assert memory == Memory(size, adapters.arena.master.numel() * 4, remainders * 92, size)
    # what booking it really takes
    assert sum(plane.nbytes for plane in xgblora.ops.new_remainders(adapters.weights())) == memory.remainders
    assert sum(weight.cpu().nbytes for weight in adapters.weights()) == memory.host_copy


def test_quantised_weights_are_counted_as_they_are_stored_and_never_copied(make_base):
    model = nn.ModuleDict({"int8": make_base("Int8Linear", 6, 4), "packed": make_base("PackedLinear", 6, 4)})
    memory = memory_of(xgblora.attach(model, ["int8", "packed"], alpha=1.0))
    # a byte a weight and four a scale; half a byte a weight
    assert memory.weights == (24 + 4 * 4) + 12
    assert (memory.remainders, memory.host_copy) == (0, 0)


def test_what_people_read():
    memory = Memory(weights=3 << 30, adapters=49152, remainders=5 << 19, host_copy=1000)
    assert str(memory) == (
        "3.0 GiB of adapted weights, 48.0 KiB of adapters; merging adds at most 2.5 MiB of remainders, on the device "
        "or the host, and 1000 bytes on the host (copy of the base, where no file has it)"
    )


def test_attaching_says_it_in_one_line(make_opt, caplog):
    with caplog.at_level(logging.INFO, logger="xgblora"):
        adapters = xgblora.attach(make_opt(), alpha=1.0)
    assert caplog.messages == [
        f"adapters on 4 layers (q_proj 2, v_proj 2), 256 trainable parameters; {memory_of(adapters)}"
    ]


def test_a_second_line_names_what_cannot_be_merged_into(make_base, caplog):
    kinds = ["Linear", "Int8Linear", "Int8Linear", "PackedLinear", "Ternary"]
    model = nn.ModuleDict({f"layer_{index}": make_base(kind) for index, kind in enumerate(kinds)})
    with caplog.at_level(logging.INFO, logger="xgblora"):
        xgblora.attach(model, ".*", alpha=1.0)
    assert len(caplog.messages) == 2
    assert caplog.messages[1] == (
        "4 of 5 adapted layers cannot be merged into (2 Int8Linear of int8, 1 PackedLinear of uint8, 1 Ternary of "
        "float32): their boosters stay in a bank beside the weights"
    )
