"""`update_` of the kernels gives the bits of the eager reference."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from xgblora.kernels.update import update_
from xgblora.ops.update import RULES, _update

FACTORS = [0.9, 0.1, 0.999, 0.001, 1e-8, 0.271, 0.002997]


def check(device, size, directions, distribution, weight_decay=0.1, optimizer="sgd"):
    """Update a master and its moments, twice, as the kernel does and as the reference on the CPU does."""
    generator = torch.Generator().manual_seed(size + directions)
    names, count = RULES[optimizer]
    expected = torch.randn(size, generator=generator)
    moments = {name: torch.randn(size, generator=generator).square_() for name in names}
    master, ours = (
        expected.to(device, copy=True),
        {name: moment.to(device, copy=True) for name, moment in moments.items()},
    )
    factors = torch.tensor(FACTORS[:count]) if count else None
    for _ in range(2):
        seeds = torch.randint(-(2**62), 2**62, (directions,), generator=generator)
        coefficients = torch.randn(directions, generator=generator)
        arguments = seeds, coefficients, torch.tensor([1e-2]), torch.tensor([weight_decay])
        on_device = [tensor.to(device) for tensor in arguments]
        factors_there = factors.to(device) if count else None
        update_(master, *on_device, distribution, optimizer, **ours, factors=factors_there)
        _update(expected, *arguments, distribution, optimizer, **moments, factors=factors)
    assert torch.equal(master.cpu(), expected)
    for name, moment in moments.items():
        assert torch.equal(ours[name].cpu(), moment), name


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("size", [1, 7, 1003, 1024, 5000])
def test_sizes(device, size, distribution):
    check(device, size, 2, distribution)


@pytest.mark.parametrize(("directions", "weight_decay"), [(1, 0.1), (2, 0.0), (3, 0.1), (7, 0.0), (16, 0.1)])
def test_directions(device, directions, weight_decay):
    check(device, 2051, directions, "gaussian", weight_decay)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize(("size", "directions"), [(7, 1), (1003, 3), (2056, 1)])
@pytest.mark.parametrize("optimizer", ["sign", "momentum", "adam"])
def test_optimizers(device, optimizer, size, directions, distribution):
    check(device, size, directions, distribution, optimizer=optimizer)


@pytest.mark.parametrize("optimizer", RULES)
def test_coefficients_that_are_zero_subnormal_or_large(device, optimizer):
    names, count = RULES[optimizer]
    for coefficient in (0.0, -0.0, 1e-41, 1e-22, 1e15):
        results = []
        for place, function in ((device, update_), (torch.device("cpu"), _update)):
            moments = {name: torch.zeros(100, device=place) for name in names}
            factors = torch.tensor(FACTORS[:count], device=place) if count else None
            seed, lr = torch.tensor([3], device=place), torch.tensor([1.0], device=place)
            master = torch.full((100,), 0.5, device=place)
            coefficients = torch.tensor([coefficient], device=place)
            function(master, seed, coefficients, lr, lr, "gaussian", optimizer, **moments, factors=factors)
            results.append(torch.stack([master, *moments.values()]).cpu())
        assert torch.equal(*results), coefficient


def test_no_elements(device):
    one = torch.tensor([1.0], device=device)
    master = torch.empty(0, device=device)
    update_(master, torch.tensor([1], device=device), one, one, one, "gaussian")
    assert master.shape == (0,)


@pytest.mark.parametrize("optimizer", RULES)
def test_elements_beyond_the_end_are_not_touched(device, optimizer):
    names, count = RULES[optimizer]
    memory = {name: torch.full((1100,), float("nan"), device=device) for name in ("master", *names)}
    for tensor in memory.values():
        tensor[:1003] = 0.0
    one, seed = torch.tensor([1.0], device=device), torch.tensor([1], device=device)
    master, *moments = (tensor[:1003] for tensor in memory.values())
    factors = torch.tensor(FACTORS[:count], device=device) if count else None
    update_(
        master, seed, one, one, one, "gaussian", optimizer, **dict(zip(names, moments, strict=True)), factors=factors
    )
    for tensor in memory.values():
        assert tensor[:1003].isfinite().all()
        assert tensor[1003:].isnan().all()
