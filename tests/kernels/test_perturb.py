"""`perturb` of the kernels gives the bits of the eager reference."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from xgblora.kernels.perturb import perturb
from xgblora.ops.perturb import _perturb

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def check(device, size, groups, directions, dtype, distribution, eps=1e-2):
    """Perturb into poisoned memory and compare with the reference on the CPU."""
    generator = torch.Generator().manual_seed(size + groups)
    master = torch.randn(size, generator=generator)
    seeds = torch.randint(-(2**62), 2**62, (directions,), generator=generator)
    signs = torch.tensor([1.0, -1.0, 0.0]).repeat(groups)[:groups]
    expected = torch.full((groups, size), float("nan"), dtype=dtype)
    live = expected.to(device)
    _perturb(master, expected, seeds, torch.tensor([eps]), signs, distribution)
    inputs = [tensor.to(device) for tensor in (master, seeds, torch.tensor([eps]), signs)]
    perturb(inputs[0], live, *inputs[1:], distribution)
    assert torch.equal(live.cpu(), expected)
    assert torch.equal(inputs[0].cpu(), master)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 7, 1003, 1024, 5000])
def test_sizes(device, size, dtype, distribution):
    check(device, size, 2, 1, dtype, distribution)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("groups", "directions"), [(1, 1), (3, 1), (6, 3), (4, 4), (8, 2)])
def test_groups_and_directions(device, groups, directions, dtype):
    check(device, 2051, groups, directions, dtype, "gaussian")


def test_no_elements(device):
    live = torch.empty(2, 0, device=device)
    arguments = [torch.tensor([1], device=device), torch.tensor([0.1], device=device), torch.ones(2, device=device)]
    perturb(torch.empty(0, device=device), live, *arguments, "gaussian")
    assert live.shape == (2, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sign_zero_restores(device, dtype):
    master = torch.randn(4097, device=device)
    live = torch.full((2, 4097), float("nan"), dtype=dtype, device=device)
    zeros = torch.zeros(2, device=device)
    perturb(master, live, torch.tensor([3], device=device), torch.tensor([0.1], device=device), zeros, "gaussian")
    assert torch.equal(live, master.to(dtype).expand(2, -1))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy speaks up about infinities and NaNs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_is_to_nearest_even_for_every_kind_of_value(device, dtype):
    ties = [0x3F808000, 0x3F818000, 0x3F801000, 0x3F803000]
    subnormal = [0x00000001, 0x007FFFFF, 0x33000000, 0x33000001]
    overflowing = [0x7F7FFFFF, 0x7F7F8000, 0x7F7F7FFF, 0x477FEFFF, 0x477FF000]
    special = [0x7F800000, 0x7FC00000, 0x7FFFFFFF, 0x7F800001]
    everywhere = torch.arange(0, 1 << 32, 69_683) - (1 << 31)
    bits = torch.cat([torch.tensor(ties + subnormal + overflowing + special), everywhere])
    master = bits.to(torch.int32).view(torch.float32)
    live = torch.zeros(1, master.numel(), dtype=dtype, device=device)
    one = torch.tensor([1.0], device=device)
    # a sign of 0 adds a zero: what is left is the rounding
    perturb(master.to(device), live, torch.tensor([0], device=device), one, one * 0, "rademacher")
    expected = (master + 0.0).to(dtype)
    same = (live[0].cpu() == expected) | (live[0].cpu().isnan() & expected.isnan())
    assert same.all()
