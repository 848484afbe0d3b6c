"""A merge that passes the range of a weight's dtype is not made, and nothing is lost by it."""

import pytest
import torch
from torch import nn

import xgblora
from xgblora.boosting import MergeOverflow
from xgblora.errors import InputError
from xgblora.replaying import rebuild

ROUNDINGS = ["remainder", "stochastic", "nearest"]


def model_near_the_end(dtype=torch.float16, largest=65_500.0):
    """Two layers; one weight of the second is near the end of what fp16 holds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.ModuleDict({"first": nn.Linear(4, 3), "second": nn.Linear(4, 3)}).to(dtype)
    model["second"].weight.data[1, 2] = largest
    return model


def boosted(dtype=torch.float16, **settings):
    """A booster after a merge that fits, and its adapters, which no longer do."""
    adapters = xgblora.attach(model_near_the_end(dtype), ["first", "second"], alpha=1.0, seed=3)
    booster = xgblora.Booster(adapters, **settings)
    fill(adapters, 0.01)
    booster.merge(step=1)
    fill(adapters, 100.0)
    return adapters, booster


def fill(adapters, value: float) -> None:
    adapters.arena.master.fill_(value)
    adapters.arena.restore()


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("reinit", ["kaiming", "orthogonal", "warm"])
def test_it_names_the_layer_and_leaves_everything_as_it_was(rounding, reinit):
    adapters, booster = boosted(rounding=rounding, reinit=reinit)
    weights, adapter = [weight.clone() for weight in adapters.weights()], adapters.arena.master.clone()
    with pytest.raises(MergeOverflow) as error:
        booster.merge(step=2)
    assert "merge of round 2 was not made: the weight of second" in str(error.value)
    assert "float16, which ends at 65504" in str(error.value)
    assert len(booster.ledger) == 1
    assert torch.equal(adapters.arena.master, adapter)
    for before, after in zip(weights, adapters.weights(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_smaller_one_afterwards_comes_out_as_if_nothing_had_been(rounding):
    tried, plain = boosted(rounding=rounding), boosted(rounding=rounding)
    with pytest.raises(MergeOverflow):
        tried[1].merge(step=2)
    for adapters, booster in (tried, plain):
        fill(adapters, 0.02)
        booster.merge(step=3)
    for ours, theirs in zip(tried[0].weights(), plain[0].weights(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_all_weights_are_looked_at_once_and_then_bounded(monkeypatch, rounding, dtype):
    looks, aminmax = [], torch.Tensor.aminmax
    monkeypatch.setattr(torch.Tensor, "aminmax", lambda weight: looks.append(weight) or aminmax(weight))
    adapters = xgblora.attach(model_near_the_end(dtype, largest=1.0), ["first", "second"], alpha=1.0, rank=2, seed=3)
    booster = xgblora.Booster(adapters, rounding=rounding)
    for step in range(1, 9):
        fill(adapters, -0.5 if step % 3 else 0.7)
        booster.merge(step=step)
        assert max(weight.abs().max().item() for weight in adapters.weights()) <= booster._reach._most
    assert len(looks) == 2, "the first merge looks at both"
    booster.rollback(round=3)
    assert len(looks) == 4, "they were set to others"


def test_where_the_bound_comes_to_the_end_they_are_looked_at_again():
    adapters, booster = boosted()
    for step in range(2, 6):
        # up and down: the bound is past the end after each merge, and no weight is
        fill(adapters, 0.0)
        adapters.layers["first"].a.data.fill_(10.0)
        adapters.layers["first"].b.data.fill_(10.0 if step % 2 else -10.0)
        booster.merge(step=step)
    assert booster._reach._most == 65_504, "what the largest one is, as fp16 has it"
    assert all(weight.isfinite().all() for weight in adapters.weights())


def test_bf16_has_room():
    adapters, booster = boosted(torch.bfloat16)
    booster.merge(step=2)
    assert all(weight.isfinite().all() for weight in adapters.weights())


def test_a_ledger_whose_last_booster_was_never_merged_is_refused_by_the_layer():
    adapters, booster = boosted()
    with pytest.raises(MergeOverflow):
        booster.merge(step=2)
    booster.enter_unmerged(step=2, epoch=1.0)
    assert torch.equal(booster.ledger.boosters[1].adapters, adapters.arena.master)
    with pytest.raises(MergeOverflow, match="base \\+ boosters: the weight of second"):
        rebuild(model_near_the_end(), booster.ledger)


def test_folding_is_a_merge_too():
    adapters, _ = boosted()
    weights = [weight.clone() for weight in adapters.weights()]
    with pytest.raises(InputError, match="second: its adapter cannot be folded in"):
        xgblora.detach(adapters.model)
    for before, after in zip(weights, adapters.weights(), strict=True):
        assert torch.equal(before, after)
    assert isinstance(xgblora.detach(adapters.model, fold=False)["second"], nn.Linear)
