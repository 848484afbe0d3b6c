"""Momentum, Adam and sign over the arena: torch's own optimizers agree, skipped steps count for nothing."""

import math

import pytest
import torch
from torch import nn

import xgblora
from xgblora.errors import InputError
from xgblora.ops.noise import normal
from xgblora.zo import ArenaOptimizer, UpdateRule

CPU = torch.device("cpu")


@pytest.fixture
def adapters(randomise_adapters):
    torch.manual_seed(0)
    adapters = xgblora.attach(nn.ModuleDict({"only": nn.Linear(6, 5)}), ["only"], alpha=2.0)
    randomise_adapters(adapters, std=0.5)
    return adapters


def step(optimizer, seed, *, applied=True, lr=0.01, projected=(0.7,)):
    """A step along one direction; projected gradients are zero where it is not applied, as `ZeroOrder` makes them."""
    projected = torch.tensor(projected) * seed * applied
    optimizer.step(torch.tensor([seed]), projected, torch.tensor([lr]), torch.tensor(applied))


def optimizer_of(adapters, name, weight_decay=0.1, **numbers):
    return ArenaOptimizer(
        adapters.arena, UpdateRule(name, **numbers), distribution="gaussian", weight_decay=weight_decay
    )


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_they_are_torch_s_optimizers(adapters, name):
    """Decoupled weight decay of our momentum is added to the step; torch's SGD takes it into the moment, so none."""
    parameter = nn.Parameter(adapters.arena.master.double())
    if name == "adam":
        ours = optimizer_of(adapters, name, weight_decay=0.1, beta1=0.8, beta2=0.95)
        theirs = torch.optim.AdamW([parameter], lr=0.01, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.1)
    else:
        ours = optimizer_of(adapters, name, weight_decay=0.0, beta1=0.8)
        theirs = torch.optim.SGD([parameter], lr=0.01, momentum=0.8)
    for seed in range(1, 30):
        step(ours, seed)
        parameter.grad = normal(seed, parameter.numel(), device=CPU).double() * 0.7 * seed
        theirs.step()
    difference = (adapters.arena.master.double() - parameter.detach()).abs().max()
    assert difference < 1e-5 * max(1.0, parameter.abs().max().item())


def test_sign_moves_every_number_by_the_learning_rate(adapters):
    before = adapters.arena.master.clone()
    step(optimizer_of(adapters, "sign", weight_decay=0.0), 3, lr=0.25)
    assert torch.allclose((adapters.arena.master - before).abs(), torch.tensor(0.25))


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "sign"])
@pytest.mark.parametrize("skipped", [(0,), (0, 1), (2, 5)])
def test_steps_that_are_not_applied_are_as_if_they_had_not_been(adapters, name, skipped):
    start = adapters.arena.master.clone()
    results = []
    for leave_out in (False, True):
        adapters.arena.master.copy_(start)
        optimizer = optimizer_of(adapters, name)
        for index in range(7):
            if index not in skipped:
                step(optimizer, index + 1)
            elif not leave_out:
                before = adapters.arena.master.clone()
                step(optimizer, index + 1, applied=False)
                assert torch.equal(adapters.arena.master, before)
        results.append([adapters.arena.master.clone(), *adapters.arena.moments.values()])
    assert all(torch.equal(with_skips, without) for with_skips, without in zip(*results, strict=True))


def test_the_bias_correction_does_not_drift(adapters):
    optimizer = optimizer_of(adapters, "adam")
    for count in range(1, 3001):
        factors = optimizer._factors_now(torch.tensor(True))
        for beta, correction in zip(factors[0:4:2].double(), factors[5:], strict=True):
            gain = factors[1 if beta == factors[0].double() else 3].double()
            exact = gain * (1 - beta**count) / (1 - beta)
            assert math.isclose(correction, exact, rel_tol=1e-7)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_a_merge_and_a_rollback_start_with_fresh_moments(adapters, name):
    optimizer, booster = optimizer_of(adapters, name), xgblora.Booster(adapters)
    for start_anew in (booster.merge, lambda: booster.rollback(round=0)):
        step(optimizer, 2)
        assert all(moment.any() for moment in adapters.arena.moments.values())
        start_anew()
        assert not any(moment.any() for moment in adapters.arena.moments.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "lion"}, "optimizer=lion: must be one of sgd, momentum, adam, sign"),
        ({"beta1": 1.0}, "beta1=1.0: must be 0 or more and below 1"),
        ({"beta2": -0.1}, "beta2=-0.1"),
        ({"beta2": math.nan}, "beta2=nan"),
        ({"epsilon": 0.0}, "epsilon=0.0: must be a positive finite number"),
        ({"epsilon": math.inf}, "epsilon=inf"),
    ],
)
def test_bad_numbers_are_refused_in_one_line(arguments, message):
    with pytest.raises(InputError, match=f"^{message}") as raised:
        UpdateRule(**{"optimizer": "adam", **arguments})
    assert "\n" not in str(raised.value)
