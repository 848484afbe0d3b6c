"""Steps whose losses are not finite, or all the same."""

import math

import pytest
import torch

import xgblora
from tests.zo.toys import squared_errors


def test_losses_that_are_all_the_same_point_nowhere_and_are_no_skipped_step(adapters, batch):
    def constant(model, inputs):
        return torch.ones(len(inputs["x"]))

    before = adapters.arena.master.clone()
    zo = xgblora.ZeroOrder(adapters, constant, lr=0.5, directions=2, two_sided=False, normalise=True)
    zo.step(batch)
    assert torch.equal(adapters.arena.master, before)
    assert zo.skipped_steps.item() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("row", [0, 2])
def test_a_one_sided_loss_that_is_not_finite_skips_the_step(adapters, batch, bad, row):
    """Row 0 is a perturbed one, row 2 the one without noise."""

    def objective(model, inputs):
        losses = squared_errors(model, inputs).clone()
        losses[row * 8 % len(losses)] = bad
        return losses

    before = adapters.arena.master.clone()
    options = {"directions": 2, "pairing": "paired", "two_sided": False, "normalise": True}
    zo = xgblora.ZeroOrder(adapters, objective, lr=0.1, **options)
    zo.step(batch)
    assert torch.equal(adapters.arena.master, before)
    assert zo.skipped_steps.item() == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pairing", ["paired", "sequential"])
def test_a_step_with_a_loss_that_is_not_finite_is_skipped_and_the_next_goes_on(adapters, batch, bad, pairing):
    poison = {"on": False}

    def objective(model, inputs):
        losses = squared_errors(model, inputs).clone()
        if poison["on"]:
            losses[-1] = bad
        return losses

    zo = xgblora.ZeroOrder(adapters, objective, eps=1e-2, lr=0.1, directions=2, pairing=pairing, weight_decay=0.1)
    for step, on in enumerate([False, True, True, False]):
        poison["on"] = on
        before = adapters.arena.master.clone()
        result = zo.step(batch)
        assert torch.equal(adapters.arena.master, before) == on
        assert torch.equal(adapters.arena.live, adapters.arena.master.expand(4, -1))
        assert torch.all(result.projected_grad == 0) == on
        assert result.loss.isfinite() != on
        assert zo.step_index == step + 1
        assert adapters.arena.master.isfinite().all()
    assert zo.skipped_steps.item() == 2


def test_a_projected_gradient_that_overflows_is_skipped_too(adapters, batch):
    def objective(model, inputs):
        return squared_errors(model, inputs) * 1e38

    zo = xgblora.ZeroOrder(adapters, objective, eps=1e-3, lr=0.1)
    before = adapters.arena.master.clone()
    zo.step(batch)
    assert torch.equal(adapters.arena.master, before)
    assert zo.skipped_steps.item() == 1
