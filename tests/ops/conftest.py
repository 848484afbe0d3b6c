"""The host extension with each instruction set that this machine can run."""

import functools
import types

import pytest
import torch

from xgblora.ops.backends import host
from xgblora.ops.extension import Extension
from xgblora.ops.host_extension import host_extension

MARGIN = 16


@pytest.fixture(params=["AVX-512", "AVX2", "baseline"])
def instruction_set(request, monkeypatch) -> str:
    """The instruction set that the host implementations run with in this test."""
    module = host_extension().module
    if module is None:
        pytest.skip(host_extension().state)
    if request.param not in module.instruction_sets():
        pytest.skip(f"this machine has no {request.param}")
    number = module.instruction_sets().index(request.param)
    chosen = types.SimpleNamespace(
        **{name: functools.partial(getattr(module, name), set=number) for name in ("perturb", "update", "merge")}
    )
    monkeypatch.setattr(host, "host_extension", lambda: Extension(chosen, request.param))
    return request.param


@pytest.fixture
def threads():
    """A function that sets the number of torch's threads for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def inside_poison():
    """A function that copies a tensor to an odd place inside poisoned storage; gives the copy and the storage."""

    def place(values: torch.Tensor, offset: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        storage = torch.full((values.numel() + offset + 2 * MARGIN,), 12345.0, dtype=values.dtype)
        first = MARGIN + offset
        return storage[first : first + values.numel()].view(values.shape).copy_(values), storage

    return place
