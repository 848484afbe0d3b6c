import logging

import pytest
import torch
from torch import nn

import xgblora
from xgblora import ops
from xgblora.errors import InputError
from xgblora.ops.merge_rank1 import ROUNDINGS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def boosted(make_opt, randomise_adapters):
    """A function that makes a booster after `rounds` rounds, with the weights before and after each of them."""

    def make(rounds=4, *, rounding="remainder", dtype=torch.float32, seed=0, std=0.1):
        adapters = xgblora.attach(make_opt(dtype=dtype), alpha=2.0, seed=seed)
        booster = xgblora.Booster(adapters, rounding=rounding)
        snapshots = [weights_of(adapters)]
        for round in range(rounds):
            randomise_adapters(adapters, seed=round, std=std)
            booster.merge(step=10 * (round + 1), epoch=round / 2, held_out_loss=1.0 / (round + 1))
            snapshots.append(weights_of(adapters))
        return booster, snapshots

    return make


def weights_of(adapters):
    return [weight.clone() for weight in adapters.weights()]


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_merge_does_not_change_the_function(make_model, token_batch, randomise_adapters, dtype, rounding):
    model, batch = make_model(dtype=dtype), token_batch()
    adapters = xgblora.attach(model, alpha=2.0)
    booster = xgblora.Booster(adapters, rounding=rounding)
    with torch.no_grad():
        base = model(**batch).logits.float()
        randomise_adapters(adapters, std=0.3)
        before = model(**batch).logits.float()
        booster.merge()
        after = model(**batch).logits.float()
    assert (before - base).abs().max() > 0.05, "the adapters did something"
    assert (after - before).abs().max() < 64 * torch.finfo(dtype).eps * base.abs().max()


def test_a_merge_of_adapters_that_were_taken_off_is_refused(boosted, randomise_adapters):
    booster, _ = boosted(1)
    randomise_adapters(booster.adapters)
    xgblora.detach(booster.adapters.model)
    before = weights_of(booster.adapters)
    with pytest.raises(InputError, match="were taken off the model"):
        booster.merge()
    with pytest.raises(InputError, match="were taken off the model"):
        booster.merge_noise(torch.tensor([1]), torch.tensor([0.5]))
    assert same(weights_of(booster.adapters), before)


def test_the_next_round_starts_with_a_fresh_adapter(boosted):
    booster, _ = boosted(2, seed=5)
    arena = booster.adapters.arena
    fresh = arena.master.clone()
    assert booster.round == 3
    assert all(torch.all(layer.b == 0) for layer in booster.adapters.layers.values())
    booster.adapters.reinitialise(round=2)
    assert torch.equal(arena.master, fresh), "noise of (seed, round)"
    booster.adapters.reinitialise(round=1)
    assert not torch.equal(arena.master, fresh)
    other, _ = boosted(2, seed=6)
    assert not torch.equal(other.adapters.arena.master, fresh)


def test_live_rows_follow_the_merge(boosted):
    booster, _ = boosted(0)
    live = booster.adapters.arena.allocate_live(2, torch.float32)
    booster.adapters.arena.master.normal_()
    booster.adapters.arena.restore()
    booster.merge()
    assert torch.equal(live, booster.adapters.arena.master.expand(2, -1))


def test_ledger_entries_are_copies(boosted):
    booster, _ = boosted(0)
    master = booster.adapters.arena.master
    master.normal_()
    trained = master.clone()
    merged = booster.merge(step=7, epoch=0.5, held_out_loss=2.0)
    assert booster.ledger.boosters == [merged]
    assert (merged.round, merged.step, merged.epoch, merged.held_out_loss) == (1, 7, 0.5, 2.0)
    assert merged.scale == 2.0
    assert torch.equal(merged.adapters, trained)
    master.fill_(9.0)
    assert torch.equal(merged.adapters, trained)
    assert merged.adapters.untyped_storage().data_ptr() != master.untyped_storage().data_ptr()


def test_a_merge_writes_from_the_arena_itself(boosted, monkeypatch):
    booster, _ = boosted(0)
    master = booster.adapters.arena.master
    master.normal_()
    written, merge = [], ops.merge_rank1_
    monkeypatch.setattr(
        ops, "merge_rank1_", lambda *given, **options: written.append(given[1]) or merge(*given, **options)
    )
    booster.merge()
    (pairs,) = written
    storages = {part.untyped_storage().data_ptr() for pair in pairs for part in pair}
    assert storages == {master.untyped_storage().data_ptr()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_base_and_ledger_give_the_trained_weights_bit_for_bit(boosted, make_opt, dtype, rounding):
    booster, snapshots = boosted(dtype=dtype, rounding=rounding)
    assert not same(snapshots[0], snapshots[-1])
    twin = xgblora.Booster(xgblora.attach(make_opt(dtype=dtype), alpha=2.0), rounding=rounding)
    twin.replay(booster.ledger)
    assert same(twin.adapters.weights(), snapshots[-1])
    assert torch.equal(twin.adapters.arena.master, booster.adapters.arena.master)
    assert twin.round == booster.round
    for each in (booster, twin):
        each.adapters.arena.master.fill_(1e-3)
        each.merge()
    assert same(twin.adapters.weights(), booster.adapters.weights()), "and the rest of the run goes on alike"
    assert len(booster.ledger) == len(twin.ledger) == 5, "each writes its own ledger"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_with_the_remainder_small_merges_add_up_to_the_fp32_sum(boosted, make_opt, dtype):
    booster, snapshots = boosted(60, dtype=dtype, std=0.01)
    totals = [weight.float() for weight in snapshots[0]]
    for merged in booster.ledger.boosters:
        pairs = [slot.views(merged.adapters.unsqueeze(0)) for slot in booster.ledger.slots]
        ops.merge_rank1_(totals, [(a[0, 0], b[0, 0]) for a, b in pairs], 2.0, "nearest")
    for weight, total in zip(booster.adapters.weights(), totals, strict=True):
        error = (weight.double() - total.double()).abs()
        assert torch.all(error <= total.double().abs() * torch.finfo(dtype).eps / 2 + 2.0**-25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("round", range(5))
def test_rollback_gives_the_weights_after_that_round(boosted, dtype, rounding, round):
    booster, snapshots = boosted(dtype=dtype, rounding=rounding)
    booster.rollback(round=round)
    assert same(booster.adapters.weights(), snapshots[round])
    assert len(booster.ledger) == round
    assert booster.round == round + 1
    start = booster.adapters.arena.master.clone()
    booster.adapters.reinitialise(round=round)
    assert torch.equal(booster.adapters.arena.master, start)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_round_after_a_rollback_is_the_round_it_would_have_been(boosted, randomise_adapters, rounding):
    booster, snapshots = boosted(dtype=torch.bfloat16, rounding=rounding)
    booster.rollback(round=2)
    for round in (2, 3):
        randomise_adapters(booster.adapters, seed=round)
        booster.merge()
    assert same(booster.adapters.weights(), snapshots[-1])


@pytest.mark.parametrize("round", [-1, 5])
def test_there_is_no_rollback_to_a_round_that_was_not(boosted, round):
    booster, snapshots = boosted()
    with pytest.raises(InputError, match=f"^round={round}: must be from 0 to 4, the number of boosters$"):
        booster.rollback(round=round)
    assert same(booster.adapters.weights(), snapshots[-1])


def test_a_rollback_before_the_first_merge_only_starts_the_round_again(boosted):
    booster, snapshots = boosted(0)
    start = booster.adapters.arena.master.clone()
    booster.adapters.arena.master.normal_()
    booster.rollback(round=0)
    assert torch.equal(booster.adapters.arena.master, start)
    assert same(booster.adapters.weights(), snapshots[0])


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"target_modules": ["k_proj"]}, "the adapted layers"),
        ({"alpha": 3.0}, "alpha is 2.0 there and 3.0 here"),
        ({"seed": 1}, "the seed is 0 there and 1 here"),
        ({"rank": 2}, "the rank is 1 there and 2 here"),
        ({"model": {"seed": 1}}, "fingerprint"),
        ({"model": {"dtype": torch.bfloat16}}, "the dtype of the weights is float32 there and bfloat16 here"),
        ({"rounding": "nearest"}, "rounding is remainder there and nearest here"),
    ],
)
def test_a_ledger_of_another_run_is_refused(boosted, make_opt, difference, message):
    ledger = boosted(1)[0].ledger
    options = {"alpha": 2.0, **difference}
    model, rounding = make_opt(**options.pop("model", {})), options.pop("rounding", "remainder")
    adapters = xgblora.attach(model, **options)
    before = weights_of(adapters)
    booster = xgblora.Booster(adapters, rounding=rounding)
    with pytest.raises(InputError, match=f"^the ledger belongs to another run: .*{message}") as raised:
        booster.replay(ledger)
    assert "\n" not in str(raised.value)
    assert same(adapters.weights(), before)
    assert len(booster.ledger) == 0


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_adapter_of_rank_3_is_merged_as_three_of_rank_1(make_opt, randomise_adapters, dtype, rounding):
    adapters = xgblora.attach(make_opt(dtype=dtype), alpha=6.0, rank=3)
    booster, before = xgblora.Booster(adapters, rounding=rounding), weights_of(adapters)
    randomise_adapters(adapters, std=0.3)
    updates = [2.0 * layer.b.T @ layer.a for layer in adapters.layers.values()]
    merged = booster.merge(step=1)
    assert merged.scale == 2.0
    assert len(booster.ledger) == 1
    for weight, base, update in zip(adapters.weights(), before, updates, strict=True):
        error = (weight.float() - base.float() - update).abs().max()
        # three roundings of a sum of about 1
        assert error < 4 * torch.finfo(dtype).eps * (base.float() + update).abs().max()
    twin = xgblora.Booster(xgblora.attach(make_opt(dtype=dtype), alpha=6.0, rank=3), rounding=rounding)
    twin.replay(booster.ledger)
    assert same(twin.adapters.weights(), adapters.weights())
    booster.rollback(round=0)
    assert same(adapters.weights(), before)


def test_the_terms_of_one_adapter_round_with_noise_of_their_own(make_opt):
    adapters = xgblora.attach(make_opt(dtype=torch.bfloat16), ["layers.0.fc1"], alpha=8.0, rank=8)
    (layer,) = adapters.layers.values()
    booster, before = xgblora.Booster(adapters, rounding="stochastic"), layer.weight.clone().float()
    with torch.no_grad():
        layer.a.fill_(1.0)
        layer.b.fill_(2.0**-12)
    booster.merge()
    changed = layer.weight.float() - before
    assert (changed.mean() / (8 * 2.0**-12) - 1).abs() < 0.1
    # here bf16 has steps of 2**-11, and each of the eight terms is half of one: with the same noise for all of them
    # every weight would go up by all eight or by none; with noise of their own one in 128 does
    steps = changed[before.gt(0.0625) & before.lt(0.11)] / 2.0**-11
    assert len(steps) > 100
    assert ((steps == 0) | (steps == 8)).float().mean() < 0.1


class TestLayersThatCannotBeWritten:
    """Boosters of quantised layers stay beside them."""

    @pytest.fixture
    def quantised(self, make_opt, quantise):
        """A booster over an OPT whose query and value projections are int8."""
        return xgblora.Booster(xgblora.attach(quantise(make_opt()), alpha=2.0, rank=2))

    def test_a_merge_does_not_change_the_function(self, quantised, randomise_adapters, token_batch):
        model, batch = quantised.adapters.model, token_batch()
        with torch.no_grad():
            base = model(**batch).logits
            randomise_adapters(quantised.adapters, std=0.3)
            before = model(**batch).logits
            quantised.merge()
            after = model(**batch).logits
        assert (before - base).abs().max() > 0.05
        assert (after - before).abs().max() < 1e-5

    def test_rollback_and_replay_give_the_banks_again(self, quantised, randomise_adapters, make_opt, quantise):
        banks = []
        for round in range(3):
            randomise_adapters(quantised.adapters, seed=round)
            quantised.merge()
            banks.append([layer.bank for layer in quantised.adapters.layers.values()])
        ledger = quantised.ledger
        twin = xgblora.Booster(xgblora.attach(quantise(make_opt()), alpha=2.0, rank=2))
        twin.replay(ledger)
        quantised.rollback(round=2)
        for booster, wanted in ((twin, banks[2]), (quantised, banks[1])):
            for layer, bank in zip(booster.adapters.layers.values(), wanted, strict=True):
                assert same(layer.bank, bank)
        quantised.rollback(round=0)
        assert all(layer.bank is None for layer in quantised.adapters.layers.values())

    def test_layers_of_both_kinds_in_one_model(self, make_opt, quantise, randomise_adapters, token_batch):
        targets = ["q_proj", "v_proj", "fc1"]
        model, batch = quantise(make_opt()), token_batch()
        adapters = xgblora.attach(model, targets, alpha=2.0)
        booster = xgblora.Booster(adapters)
        for round in range(2):
            randomise_adapters(adapters, seed=round)
            with torch.no_grad():
                before = model(**batch).logits
                booster.merge()
                assert (model(**batch).logits - before).abs().max() < 1e-5
        assert {layer.mergeable for layer in adapters.layers.values()} == {True, False}
        twin = xgblora.Booster(xgblora.attach(quantise(make_opt()), targets, alpha=2.0))
        twin.replay(booster.ledger)
        assert same(twin.adapters.weights(), adapters.weights())
        with torch.no_grad():
            assert torch.equal(twin.adapters.model(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounding": "up"}, "rounding=up: must be one of nearest, stochastic, remainder"),
        ({"reinit": "hot"}, "reinit=hot: must be one of kaiming, keep_a, orthogonal, frozen_a, warm, data, residual"),
        ({"colsample": 0.0}, "colsample=0.0: must be above 0 and at most 1"),
        ({"colsample": float("nan")}, "colsample=nan: must be above 0 and at most 1"),
    ],
)
def test_bad_arguments_are_refused(make_opt, options, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        xgblora.Booster(xgblora.attach(make_opt(), alpha=2.0), **options)


@pytest.mark.parametrize(("dtype", "warns"), [(torch.float32, False), (torch.bfloat16, True)])
def test_nearest_warns_where_it_loses(make_opt, caplog, dtype, warns):
    with caplog.at_level(logging.WARNING, logger="xgblora"):
        xgblora.Booster(xgblora.attach(make_opt(dtype=dtype), alpha=2.0), rounding="nearest")
        xgblora.Booster(xgblora.attach(make_opt(dtype=dtype), alpha=2.0), rounding="remainder")
    assert len(caplog.records) == warns


def test_boosting_lowers_the_loss_of_a_toy_problem():
    torch.manual_seed(0)
    model = nn.ModuleDict({"only": nn.Linear(8, 8)})
    x, target = torch.randn(64, 8), torch.randn(64, 8)
    booster = xgblora.Booster(xgblora.attach(model, ["only"], alpha=1.0))
    losses = []
    for _ in range(4):
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            loss = (model["only"](x) - target).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
        booster.merge()
    assert losses == sorted(losses, reverse=True), "each rank-1 booster takes away more"
    assert losses[-1] < 0.9 * losses[0]
