"""`update_` of the kernels gives the bits of the eager reference."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from xgblora.kernels.update import update_
from xgblora.ops.update import _update


def check(device, size, directions, distribution, weight_decay=0.1):
    """Update a master as the kernel does and as the reference on the CPU does."""
    generator = torch.Generator().manual_seed(size + directions)
    expected = torch.randn(size, generator=generator)
    seeds = torch.randint(-(2**62), 2**62, (directions,), generator=generator)
    coefficients = torch.randn(directions, generator=generator)
    scalars = torch.tensor([1e-2]), torch.tensor([weight_decay])
    master = expected.to(device, copy=True)
    update_(master, *(tensor.to(device) for tensor in (seeds, coefficients, *scalars)), distribution)
    _update(expected, seeds, coefficients, *scalars, distribution)
    assert torch.equal(master.cpu(), expected)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("size", [1, 7, 1003, 1024, 5000])
def test_sizes(device, size, distribution):
    check(device, size, 2, distribution)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("directions", [1, 2, 3, 7, 16])
def test_directions(device, directions, weight_decay):
    check(device, 2051, directions, "gaussian", weight_decay)


def test_no_elements(device):
    one = torch.tensor([1.0], device=device)
    master = torch.empty(0, device=device)
    update_(master, torch.tensor([1], device=device), one, one, one, "gaussian")
    assert master.shape == (0,)


def test_elements_beyond_the_end_are_not_touched(device):
    memory = torch.full((1100,), float("nan"), device=device)
    memory[:1003] = 0.0
    one = torch.tensor([1.0], device=device)
    update_(memory[:1003], torch.tensor([1], device=device), one, one, one, "gaussian")
    assert memory[:1003].isfinite().all()
    assert memory[1003:].isnan().all()
