"""Ask and tell: what members are, what a step does, and what is refused."""

import logging
import math

import pytest
import torch

import xgblora
from xgblora.errors import InputError


def population_of(booster, **options):
    return xgblora.Population(booster.adapters, booster, **{"sigma": 0.05, "lr": 0.05, "seed": 7, **options})


def parts_of(booster, adapter):
    return [part[0, 0] for slot in booster.adapters.arena.slots for part in slot.views(adapter.unsqueeze(0))]


def correlation(x, y):
    return abs(float(torch.corrcoef(torch.stack((x, y)))[0, 1]))


@pytest.mark.parametrize("kind", ["weights", "adapter"])
def test_a_quadratic_that_nobody_differentiates_is_climbed(world, climb, kind):
    booster = world()
    rewards = climb(population_of(booster, kind=kind), 40)
    assert rewards[-1] > 0.6 * rewards[0]
    assert len(booster.ledger) == (40 if kind == "weights" else 0)


@pytest.mark.parametrize("shaping", ["ranks", "clip", "best-of-pairs", "prompt-baseline"])
def test_every_shaping_climbs(world, climb, shaping):
    rewards = climb(population_of(world(), shaping=shaping, lr=lambda step: 0.1 if shaping == "ranks" else 0.05), 25)
    assert rewards[-1] > 0.7 * rewards[0]


def test_the_noise_of_members_and_of_layers_is_uncorrelated():
    """A layer large enough to tell: chance correlations have a deviation of 1 / 64 there."""
    model = torch.nn.ModuleDict({name: torch.nn.Linear(4096, 4096, bias=False) for name in ("one", "two")})
    with torch.no_grad():
        booster = xgblora.Booster(xgblora.attach(model, ["one", "two"], alpha=1.0))
    members = population_of(booster).ask(4)
    a = [parts_of(booster, members.adapter(number)) for number in range(4)]
    vectors = [part for parts in (a[0], a[2]) for part in parts]
    for index, one in enumerate(vectors):
        for other in vectors[index + 1 :]:
            assert correlation(one, other) < 0.1
    assert correlation(vectors[0], vectors[0]) > 0.99


def test_the_two_of_a_pair_differ_in_one_factor_alone_and_in_its_sign(world):
    booster = world()
    members = population_of(booster).ask(4)
    plus, minus, other = (parts_of(booster, members.adapter(number)) for number in (0, 1, 2))
    for a, b in ((0, 1), (2, 3)):
        assert torch.equal(plus[a], minus[a])
        assert torch.equal(plus[b], -minus[b])
        assert bool(plus[b].all())
        assert not torch.equal(plus[a], other[a])
    assert members.seeds[0] == members.seeds[1] != members.seeds[2]
    assert members.signs.tolist() == [1.0, -1.0, 1.0, -1.0]
    alone = population_of(world(), pairs=False).ask(3)
    assert len(set(alone.seeds.tolist())) == 3
    assert alone.signs.tolist() == [1.0] * 3


def test_a_perturbation_has_the_size_that_was_asked_for(world):
    booster = world()
    members = population_of(booster, sigma=lambda step: 0.25).ask(2)
    (slot, *_) = booster.adapters.arena.slots
    a, b = parts_of(booster, members.adapter(0))[:2]
    z = xgblora.ops.noise.normal(members.seeds[0], booster.adapters.arena.master.numel(), device=torch.device("cpu"))
    expected = 0.25 * torch.outer(z[slot.b_start : slot.b_start + 5], z[slot.a_start : slot.a_start + 6])
    torch.testing.assert_close(booster.adapters.scale * torch.outer(b, a), expected)


def test_a_step_is_the_weighted_mean_of_the_perturbations(world):
    booster = world()
    before = [weight.clone() for weight in booster.adapters.weights()]
    population = population_of(booster, lr=0.1)
    members = population.ask(4)
    updates = [
        [
            booster.adapters.scale * torch.outer(b, a) / members.sigma
            for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
        for parts in (parts_of(booster, members.adapter(number)) for number in range(4))
    ]
    told = population.tell([3.0, 1.0, 1.0, 3.0])
    for index, (old, new) in enumerate(zip(before, booster.adapters.weights(), strict=True)):
        mean = sum(sign * update[index] for sign, update in zip((1, -1, -1, 1), updates, strict=True)) / 4
        torch.testing.assert_close(new - old, 0.1 * mean, rtol=1e-4, atol=1e-6)
    assert (told.round, told.mean, told.best, told.best_member, told.failed) == (1, 2.0, 3.0, 0, 0)


def test_who_asks_again_gets_the_same_members_and_after_tell_others(world):
    population = population_of(world())
    first, again = population.ask(4), population.ask(4)
    assert torch.equal(first.seeds, again.seeds)
    population.tell([1.0, 2.0, 3.0, 4.0])
    assert not torch.equal(population.ask(4).seeds, first.seeds)


def test_noise_is_reused_for_as_many_steps_as_said(world):
    population, draws = population_of(world(), noise_reuse=3), []
    for _ in range(6):
        draws.append(population.ask(2).seeds[0].item())
        population.tell([0.0, 1.0])
    assert draws[0] == draws[1] == draws[2] != draws[3] == draws[5]


def test_schedules_and_values_in_their_place(world):
    population = population_of(world(), sigma=lambda step: 0.1 / (step + 1), lr=lambda step: 0.1)
    assert population.ask(2).sigma == 0.1
    population.tell([0.0, 1.0], lr=0.2)
    assert population.ask(2).sigma == 0.05
    assert population.ask(2, sigma=0.3).sigma == 0.3
    (booster,) = population.booster.boosters
    assert booster.coefficients.tolist() == pytest.approx([-0.2])


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf])
def test_a_failed_member_is_counted_never_best_and_has_no_weight(world, caplog, bad):
    population = population_of(world(), pairs=False)
    population.ask(4)
    with caplog.at_level(logging.WARNING, "xgblora"):
        told = population.tell([1.0, bad, 3.0, 2.0])
    assert (told.failed, told.best_member, told.best, told.mean) == (1, 2, 3.0, 2.0)
    assert population.booster.boosters[0].coefficients[1] == 0.0
    said = [message for message in caplog.messages if "population" in message]
    assert said == ["XGBLoRA: population, step 1: 1 of 4 members failed"]


@pytest.mark.parametrize(
    ("fitness", "line"),
    [([None, math.nan], "all 2 members failed, no update"), ([1, 1], "no member is better than another, no update")],
)
@pytest.mark.parametrize("kind", ["weights", "adapter"])
def test_where_nothing_can_be_said_nothing_changes_but_the_step(world, caplog, fitness, line, kind):
    booster = world()
    population = population_of(booster, kind=kind)
    before = [tensor.clone() for tensor in (*booster.adapters.weights(), booster.adapters.arena.master)]
    population.ask(2)
    with caplog.at_level(logging.WARNING, "xgblora"):
        told = population.tell(fitness)
    assert not told.updated
    assert told.round is None
    assert len(booster.ledger) == 0
    assert population.step == 1
    assert all(map(torch.equal, before, (*booster.adapters.weights(), booster.adapters.arena.master)))
    (message,) = (message for message in caplog.messages if "population" in message)
    assert line in message


def test_rewards_by_prompt_come_as_rows(world):
    population = population_of(world(), shaping="prompt-baseline")
    population.ask(2)
    told = population.tell([[0.0, 1.0], torch.tensor([1.0, 1.0])])
    assert (told.mean, told.best, told.best_member) == (0.75, 1.0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "layers"}, "kind=layers: must be one of weights, adapter"),
        ({"shaping": "best"}, "shaping=best: must be one of z-score"),
        ({"shaping": "best-of-pairs", "pairs": False}, "shaping=best-of-pairs: compares the two of a pair"),
        ({"sigma": 0.0}, "sigma=0.0: must be a positive finite number"),
        ({"lr": math.nan}, "lr=nan: must be a positive finite number"),
        ({"noise_reuse": 0}, "noise_reuse=0: must be a whole number, 1 or more"),
        ({"decay": 1.5}, "decay=1.5: must be above 0 and at most 1"),
        ({"decay": 0.9, "kind": "adapter"}, "decay=0.9: boosters fade with kind=weights"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(world, options, message):
    with pytest.raises(InputError, match=message) as raised:
        population_of(world(), **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"reinit": "warm"}, "start as kaiming"), ({"colsample": 0.5}, "start as kaiming"), ({}, "rounding=remainder")],
)
def test_a_booster_that_cannot_take_noise_is_refused(world, options, message):
    with pytest.raises(InputError, match=message):
        population_of(world(rounding="nearest", **options), decay=0.9)


def test_other_boosters_ranks_and_adapters_are_refused(world):
    with pytest.raises(InputError, match="must be over the adapters that are given"):
        xgblora.Population(world().adapters, world(), sigma=1.0, lr=1.0)
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(4, 4)})
    with pytest.raises(InputError, match="is of rank 1, and rank=2"):
        population_of(xgblora.Booster(xgblora.attach(model, ["one"], alpha=1.0, rank=2)))
    booster = world()
    population = population_of(booster)
    booster.adapters.arena.master.fill_(1.0)
    with pytest.raises(InputError, match="the adapter in training is not empty"):
        population.ask(2)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (5, "a population of 5: must be even with pairs, 4 or 6"),
        (1, "2 or more"),
        (2.0, "2 or more"),
        (True, "2 or more"),
    ],
)
def test_populations_of_no_size_are_refused(world, count, message):
    with pytest.raises(InputError, match=message):
        population_of(world()).ask(count)


def test_fitness_that_fits_no_members_is_refused(world):
    population = population_of(world())
    with pytest.raises(InputError, match="ask first"):
        population.tell([1.0])
    population.ask(2)
    for fitness, message in (([1.0], r"of shape \(1, 1\): must be \[2\]"), (["well", 1], "must be numbers or None")):
        with pytest.raises(InputError, match=message):
            population.tell(fitness)
    with pytest.raises(InputError, match="lr=-1"):
        population.tell([1.0, 2.0], lr=-1)
    assert population.tell([1.0, 2.0]).updated, "what was refused changed nothing"
