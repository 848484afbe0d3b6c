import logging

import pytest
import torch

import xgblora
from xgblora.boosting.shrinkage import FACTORS, Shrinkage
from xgblora.errors import InputError


@pytest.fixture
def booster(make_toy):
    """A booster of rank 1 whose adapter does something, with two rows of `live`."""
    booster = xgblora.Booster(xgblora.attach(make_toy(), ["first", "second"], alpha=2.0))
    arena = booster.adapters.arena
    arena.allocate_live(2, torch.float32)
    arena.master.normal_(generator=torch.Generator().manual_seed(0))
    arena.restore()
    return booster


@pytest.mark.parametrize(("value", "factor"), [("0.5", 0.5), (1, 1.0), ("1.0", 1.0), ("line_search", None)])
def test_a_flag_is_a_number_or_a_search(value, factor):
    assert Shrinkage.from_flag("eta", value) == Shrinkage(factor)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "half"])
def test_another_flag_is_refused(value):
    with pytest.raises(InputError, match=f"^eta={value}: must be a number above 0 and at most 1, or line_search$"):
        Shrinkage.from_flag("eta", value)


def test_a_merge_takes_that_share_of_the_update(booster):
    adapters = booster.adapters
    before = [weight.clone() for weight in adapters.weights()]
    updates = [layer.scale * layer.b.detach().T @ layer.a.detach() for layer in adapters.layers.values()]
    merged = booster.merge(shrinkage=0.25)
    assert merged.scale == 0.5
    for weight, base, update in zip(adapters.weights(), before, updates, strict=True):
        assert torch.allclose(weight - base, 0.25 * update, atol=1e-6)
    booster.merge(shrinkage=1.0)
    assert [booster.scale for booster in booster.ledger.boosters] == [0.5, 2.0]
    with pytest.raises(InputError, match=r"^shrinkage=2: must be above 0 and at most 1$"):
        booster.merge(shrinkage=2)


@pytest.mark.parametrize("best", FACTORS)
def test_the_search_takes_the_lowest_loss_and_leaves_the_adapters_as_they_were(booster, caplog, best):
    arena = booster.adapters.arena
    layer = booster.adapters.layers["first"]
    arena.read_live(0, 1)
    trained, live, b = arena.master.clone(), arena.live.clone(), layer.b.detach().clone()

    def held_out_loss():
        return float((layer.live[1][0] - best * b).abs().max())

    with caplog.at_level(logging.INFO, logger="xgblora"):
        factor, loss = Shrinkage(None).choose(booster.adapters, held_out_loss)
    assert (factor, loss) == (best, 0.0)
    assert torch.equal(arena.master, trained)
    assert torch.equal(arena.live, live)
    said = caplog.messages[0]
    assert said.startswith("XGBLoRA: Held-out loss by shrinkage: 0.25: ")
    assert f"{best:g}: 0.0000" in said
    assert len(caplog.messages) == (1 if best == 1.0 else 2), "a merge that changes the function says so"


def test_losses_that_are_not_finite_do_not_count(booster):
    losses = iter([float("nan"), 2.0, float("inf"), 3.0])
    assert Shrinkage(None).choose(booster.adapters, lambda: next(losses)) == (0.5, 2.0)
    factor, _ = Shrinkage(None).choose(booster.adapters, lambda: float("nan"))
    assert factor == 1.0


def test_a_fixed_factor_measures_nothing(booster, caplog):
    with caplog.at_level(logging.INFO, logger="xgblora"):
        assert Shrinkage(1.0).choose(booster.adapters, None) == (1.0, None)
        assert caplog.messages == []
        assert Shrinkage(0.5).choose(booster.adapters, None) == (0.5, None)
    (said,) = caplog.messages
    assert said == "XGBLoRA: Shrinkage 0.5: merging at scale 1 instead of 2, which changes the model's function"
