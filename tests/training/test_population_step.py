"""Steps of a population on batches: what members lose, together and one after the other, and what a step makes."""

import pytest
import torch

import xgblora
from tests.zo.toys import Toy, squared_errors, toy_batch
from xgblora.errors import InputError
from xgblora.training import population_step
from xgblora.training.population_step import PopulationStep


def steps_of(objective=squared_errors, members=6, **options):
    model = Toy()
    booster = xgblora.Booster(xgblora.attach(model, ["first", "second"], alpha=2.0, seed=3))
    population = xgblora.Population(booster.adapters, booster, **{"sigma": 0.1, "lr": 0.02, "seed": 5, **options})
    return PopulationStep(population, objective, members)


def mean_error(model, batch):
    return squared_errors(model, batch).mean()


def test_a_member_has_the_loss_of_the_weights_that_it_stands_for():
    steps, batch = steps_of(), toy_batch()
    steps.estimate(batch)
    members = steps.population.ask(6)
    for number, losses in enumerate(torch.cat(steps._losses, dim=1)):
        other = Toy()
        with torch.no_grad():
            for slot, layer in zip(steps.adapters.arena.slots, (other.first, other.second), strict=True):
                a, b = slot.views(members.adapter(number).unsqueeze(0))
                layer.weight += steps.adapters.scale * b[0].T @ a[0]
        torch.testing.assert_close(losses, squared_errors(other, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", [squared_errors, mean_error])
def test_in_blocks_and_one_by_one_the_losses_are_the_same(monkeypatch, objective):
    found = []
    for elements in (1 << 14, 4 * 48, 1):
        monkeypatch.setattr(population_step, "AUTO_PAIRING_ELEMENTS", elements)
        steps = steps_of(objective)
        steps.estimate(toy_batch())
        found.append(steps._losses[0])
    assert found[0].shape == ((6, 8) if objective is squared_errors else (6, 1))
    for losses in found[1:]:
        torch.testing.assert_close(losses, found[0])


def test_what_confuses_members_runs_one_by_one(caplog):
    caplog.set_level("INFO")

    def confusing(model, batch):
        losses = squared_errors(model, batch)
        return losses.flip(0) if len(losses) > 8 else losses

    steps = steps_of(confusing)
    steps.estimate(toy_batch())
    alone = steps_of(mean_error)
    alone.estimate(toy_batch())
    torch.testing.assert_close(steps._losses[0].mean(1, keepdim=True), alone._losses[0])
    assert "one after the other" in caplog.text


def test_the_loss_falls_and_batches_accumulate():
    steps, batch = steps_of(lr=0.05), toy_batch(16)
    losses = []
    for _ in range(40):
        losses.append(float(steps.estimate(batch)))
        steps.update()
    assert losses[-1] < 0.7 * losses[0]
    assert (steps.step_index, steps.skipped_steps, len(steps.population.booster.ledger)) == (40, 0, 40)
    halves, whole = steps_of(), steps_of()
    for start in (0, 8):
        halves.estimate({name: part[start : start + 8] for name, part in batch.items()}, weight=0.5)
    whole.estimate(batch)
    torch.testing.assert_close(halves.update().mean, whole.update().mean)


def test_a_member_whose_loss_is_not_finite_has_failed():
    def broken(model, batch):
        return squared_errors(model, batch) * torch.nan

    steps = steps_of(broken)
    assert steps.estimate(toy_batch()).isnan()
    told = steps.update()
    assert (told.failed, told.updated, steps.skipped_steps) == (6, False, 1)
    with pytest.raises(InputError, match="call estimate"):
        steps.update()


def test_a_rate_of_zero_makes_no_step_and_is_no_failure(caplog):
    steps = steps_of()
    steps.estimate(toy_batch())
    told = steps.update(lr=0.0)
    assert (told.updated, told.lr, told.failed) == (False, 0.0, 0)
    assert "no update" not in caplog.text
