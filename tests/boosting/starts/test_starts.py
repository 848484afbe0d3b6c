"""How rounds start: each strategy, some of the layers; base + tape and base + ledger still give the weights."""

import pytest
import torch

import xgblora
from xgblora import Ledger
from xgblora.adapters.adapter_set import fresh_adapter
from xgblora.boosting import RoundStart
from xgblora.boosting.finish import finish
from xgblora.boosting.peft_adapter import export_peft
from xgblora.boosting.starts import REINITS
from xgblora.errors import InputError
from xgblora.replaying import rebuild, replay
from xgblora.tape import Tape

CPU = torch.device("cpu")
OPTIONS = [{"reinit": reinit} for reinit in REINITS if reinit != "kaiming"]
OPTIONS += [{"colsample": 0.5}, {"reinit": "warm", "colsample": 0.5}, {"shrinkage": 0.3}]
OPTIONS += [{"reinit": "residual", "colsample": 0.5, "shrinkage": 0.3}]


def weights_of(adapters):
    return [weight.clone() for weight in adapters.weights()]


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def a_of(slot, adapter):
    return slot.views(adapter.unsqueeze(0))[0][0]


def dead_layers(adapters):
    """Names of the layers whose `a` and `b` are zero."""
    arena = adapters.arena
    return {slot.name for slot in arena.slots if not any(bool(part.any()) for part in arena.a_and_b(slot))}


@pytest.fixture
def probe():
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def slots(make_toy):
    return xgblora.attach(make_toy(), ["first", "second"], alpha=2.0, rank=2).arena.slots


@pytest.mark.parametrize(
    ("options", "steps", "dtype", "rounding"),
    [
        *((options, steps, torch.float32, "remainder") for options in OPTIONS for steps in (14, 12)),
        *((options, 14, torch.bfloat16, "remainder") for options in OPTIONS),
        ({"reinit": "warm"}, 12, torch.bfloat16, "stochastic"),
    ],
    ids=str,
)
def test_base_and_tape_and_base_and_ledger_are_the_trained_weights(
    train_toy, make_toy, tmp_path, options, steps, dtype, rounding
):
    booster = train_toy(dtype=dtype, rounding=rounding, rank=2, steps=steps, optimizer="adam", skipped=(5,), **options)
    assert booster.is_trained() == (steps == 14)
    # the run as it is when a checkpoint is written, and a run that goes on from it
    twin = xgblora.Booster(
        xgblora.attach(make_toy(dtype), ["first", "second"], alpha=2.0, rank=2, seed=5),
        rounding=rounding,
        reinit=booster.ledger.start.reinit,
        colsample=booster.ledger.start.colsample,
    )
    twin.replay(booster.ledger)
    assert same(twin.adapters.weights(), booster.adapters.weights()), "in the middle of a round too"
    twin.adapters.arena.master.copy_(booster.adapters.arena.master)
    assert finish(booster.adapters, booster, step=steps, epoch=1.0) == (steps == 14)
    finish(twin.adapters, twin, step=steps, epoch=1.0)
    trained = weights_of(booster.adapters)
    assert same(twin.adapters.weights(), trained)
    booster.tape.save(tmp_path / "tape.bin")
    again, verified = replay(make_toy(dtype), Tape.load(tmp_path / "tape.bin"))
    assert verified
    assert same(again.adapters.weights(), trained)
    booster.ledger.save(tmp_path / "ledger.safetensors")
    ledger = Ledger.load(tmp_path / "ledger.safetensors")
    assert ledger.start == booster.ledger.start == again.ledger.start
    assert len(ledger) == (4 if steps == 14 else 3)
    rebuilt = rebuild(make_toy(dtype), ledger)
    assert same(rebuilt.adapters.weights(), trained)
    assert not rebuilt.is_trained()
    # the ledger alone says how to go on: a rollback is the round as it was
    rebuilt.rollback(round=2)
    start = rebuilt.adapters.arena.master.clone()
    again.rollback(round=2)
    assert torch.equal(again.adapters.arena.master, start)
    assert same(again.adapters.weights(), rebuilt.adapters.weights())


@pytest.mark.parametrize("reinit", REINITS)
def test_the_first_round_starts_like_plain_lora_until_it_is_measured(slots, reinit):
    assert torch.equal(RoundStart(reinit).adapter(slots, 5, 0, []), fresh_adapter(slots, 5, 0, CPU))


def test_another_start_is_another_run(train_toy, make_toy):
    ledger = train_toy(reinit="warm").ledger
    booster = xgblora.Booster(xgblora.attach(make_toy(), ["first", "second"], alpha=2.0, seed=5))
    said = "^the ledger belongs to another run: rounds start as warm with colsample 1 there and kaiming with"
    with pytest.raises(InputError, match=said):
        booster.replay(ledger)


class TestKeepA:
    def test_the_learned_a_stays_and_b_is_zero(self, train_toy):
        booster = train_toy(steps=8, reinit="keep_a", rank=2)
        for slot in booster.ledger.slots:
            a, b = booster.adapters.arena.a_and_b(slot)
            assert torch.equal(a, a_of(slot, booster.ledger.boosters[-1].adapters))
            assert not torch.equal(a, a_of(slot, fresh_adapter(booster.ledger.slots, 5, 2, CPU)))
            assert not b.any()

    def test_of_layers_left_out_it_is_the_last_that_was_learned(self, slots):
        older, newer = torch.ones(2, fresh_adapter(slots, 0, 0, CPU).numel())
        for part in slots[0].views(newer.unsqueeze(0)):
            part.zero_()
        start = RoundStart("keep_a").adapter(slots, 5, 2, [older, newer * 2])
        assert torch.all(a_of(slots[0], start) == 1)
        assert torch.all(a_of(slots[1], start) == 2)
        never = RoundStart("keep_a").adapter(slots, 5, 2, [newer])
        assert torch.equal(a_of(slots[0], never), a_of(slots[0], fresh_adapter(slots, 5, 2, CPU)))


class TestOrthogonal:
    def test_a_is_orthogonal_to_those_of_earlier_boosters(self, slots):
        earlier = [fresh_adapter(slots, 5, 0, CPU)]
        # 2 rows of rank 2 in each booster: the second fills 4 of 5 inputs; of 3 inputs one row is past the third
        for round in (1, 2):
            start = RoundStart("orthogonal").adapter(slots, 5, round, earlier)
            earlier.append(start)
        rows = torch.cat([a_of(slots[0], adapter) for adapter in earlier[:2]]).double()
        gram = rows @ rows.T
        lengths = gram.diagonal().sqrt()
        assert (gram / lengths / lengths[:, None])[2:, :2].abs().max() < 1e-6
        fresh = a_of(slots[0], fresh_adapter(slots, 5, 1, CPU)).double().norm(dim=1)
        assert torch.allclose(lengths[2:], fresh, rtol=1e-6), "as long as it was drawn"

    def test_with_as_many_boosters_as_inputs_it_starts_again(self, make_toy):
        slots = xgblora.attach(make_toy(), ["first", "second"], alpha=2.0).arena.slots
        earlier = [fresh_adapter(slots, 9, round, CPU) for round in range(4)]
        fresh = fresh_adapter(slots, 5, 3, CPU)
        start = RoundStart("orthogonal").adapter(slots, 5, 3, earlier[:3])
        assert torch.allclose(a_of(slots[1], start), a_of(slots[1], fresh), rtol=1e-6), "3 inputs, 3 boosters"
        assert (a_of(slots[0], start) - a_of(slots[0], fresh)).abs().max() > 0.01
        start = RoundStart("orthogonal").adapter(slots, 5, 4, earlier)
        assert abs(float(a_of(slots[1], start)[0] @ a_of(slots[1], earlier[3])[0])) < 1e-7
        assert abs(float(a_of(slots[1], start)[0] @ a_of(slots[1], earlier[0])[0])) > 1e-3, "only to those since then"

    @pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
    def test_what_has_no_direction_is_passed_over(self, slots, value):
        past = torch.full_like(fresh_adapter(slots, 5, 1, CPU), value)
        start = RoundStart("orthogonal").adapter(slots, 5, 1, [past])
        assert start.isfinite().all()
        assert all(a_of(slot, start).any() for slot in slots)


class TestFrozenA:
    def test_only_b_is_perturbed_and_updated(self, train_toy):
        booster = train_toy(steps=6, reinit="frozen_a", optimizer="adam")
        arena, slots = booster.adapters.arena, booster.ledger.slots
        fresh = fresh_adapter(slots, 5, 1, CPU)
        for slot in slots:
            a, b = arena.a_and_b(slot)
            assert torch.equal(a, a_of(slot, fresh))
            assert b.all()
            for name in ("first", "second"):
                a_moment, b_moment = (part[0] for part in slot.views(arena.moments[name].unsqueeze(0)))
                assert not a_moment.any()
                assert b_moment.all()

    def test_backpropagation_gives_a_no_gradient(self, make_toy, probe):
        adapters = xgblora.attach(make_toy(), ["first", "second"], alpha=2.0)
        xgblora.Booster(adapters, reinit="frozen_a")
        adapters.model(probe).mean().backward()
        assert all(layer.a.grad is None and layer.b.grad.any() for layer in adapters.layers.values())


class TestWarm:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_the_logits_are_unchanged_at_the_merge(self, make_model, token_batch, randomise_adapters, dtype):
        model, batch = make_model(dtype=dtype), token_batch()
        adapters = xgblora.attach(model, alpha=16.0)
        booster = xgblora.Booster(adapters, reinit="warm")
        randomise_adapters(adapters, std=0.05)
        with torch.no_grad():
            before = model(**batch).logits.float()
            booster.merge()
            after = model(**batch).logits.float()
            assert all(layer.a.all() and layer.b.all() for layer in adapters.layers.values())
            adapters.arena.master.zero_()
            base_alone = model(**batch).logits.float()
        assert (after - before).abs().max() < 64 * torch.finfo(dtype).eps * before.abs().max()
        assert (base_alone - before).abs().max() > 4 * (after - before).abs().max(), "the base took the negative"

    def test_a_start_that_nothing_was_trained_upon_is_put_back(self, train_toy):
        booster = train_toy(steps=4, reinit="warm")
        plain = train_toy(steps=4)
        assert not same(booster.adapters.weights(), plain.adapters.weights())
        assert not booster.is_trained()
        assert not finish(booster.adapters, booster, step=4, epoch=1.0)
        assert same(booster.adapters.weights(), plain.adapters.weights())

    def test_a_rollback_is_on_the_tape_with_what_the_base_takes_and_gives(self, train_toy, make_toy):
        booster = train_toy(steps=14, reinit="warm", rollback=9)
        finish(booster.adapters, booster, step=14, epoch=1.0)
        assert [merged.round for merged in booster.ledger.boosters] == [1, 2, 3]
        again, verified = replay(make_toy(), booster.tape)
        assert verified
        assert same(again.adapters.weights(), booster.adapters.weights())

    def test_peft_computes_what_the_merged_model_does(self, train_toy, make_toy, probe, tmp_path):
        peft = pytest.importorskip("peft")
        booster = train_toy(steps=14, reinit="warm")
        finish(booster.adapters, booster, step=14, epoch=1.0)
        export_peft(booster.ledger, tmp_path / "adapter", task_type=None)
        adapted = peft.PeftModel.from_pretrained(make_toy(), tmp_path / "adapter")
        assert adapted.peft_config["default"].r == 4 + 3, "4 boosters and 3 starts"
        with torch.no_grad():
            assert torch.allclose(adapted(probe), booster.adapters.model(probe), rtol=1e-5, atol=1e-6)

    def test_it_is_not_shrunken(self, train_toy):
        with pytest.raises(InputError, match=r"^shrinkage=0.5: must be 1.0 with reinit=warm$"):
            train_toy(reinit="warm", shrinkage=0.5)

    def test_banks_of_layers_that_cannot_be_written(self, make_opt, quantise, randomise_adapters, token_batch):
        model, batch = quantise(make_opt()), token_batch()
        booster = xgblora.Booster(xgblora.attach(model, alpha=2.0), reinit="warm")
        randomise_adapters(booster.adapters, std=0.3)
        with torch.no_grad():
            before = model(**batch).logits
            booster.merge()
            assert (model(**batch).logits - before).abs().max() < 1e-5
            booster.end()
            assert (model(**batch).logits - before).abs().max() < 1e-5
        assert all(len(layer.bank[0]) == 1 for layer in booster.adapters.layers.values())


class TestColsample:
    @pytest.mark.parametrize(("share", "layers", "count"), [(0.14, 50, 7), (0.5, 5, 3), (0.01, 5, 1), (1.0, 4, 4)])
    def test_the_number_of_layers_is_rounded_up(self, share, layers, count):
        assert RoundStart(colsample=share).count(layers) == count

    def test_each_round_draws_layers_of_its_own_from_the_seed(self, make_opt):
        slots = xgblora.attach(make_opt(), ["q_proj", "v_proj", "fc1"], alpha=2.0).arena.slots
        start = RoundStart(colsample=0.5)
        drawn = [start.layers(slots, 3, round) for round in range(30)]
        assert {len(layers) for layers in drawn} == {start.count(len(slots))}
        assert len(set(drawn)) > 5
        assert set().union(*drawn) == {slot.name for slot in slots}
        assert drawn == [start.layers(slots, 3, round) for round in range(30)]
        assert drawn != [start.layers(slots, 4, round) for round in range(30)]

    def test_layers_left_out_are_neither_read_nor_perturbed_nor_updated(self, train_toy, probe):
        booster = train_toy(steps=6, colsample=0.5, optimizer="adam")
        adapters, arena = booster.adapters, booster.adapters.arena
        trained = booster.ledger.start.layers(arena.slots, 5, 1)
        (dead,) = dead_layers(adapters)
        assert {dead} | trained == set(adapters.layers)
        slot = next(slot for slot in arena.slots if slot.name == dead)
        for rows in (*arena.moments.values(), arena.live[0]):
            if rows.shape == arena.master.shape:
                assert not any(bool(part.any()) for part in slot.views(rows.unsqueeze(0)))
        with torch.no_grad():
            before = adapters.model(probe)
            for part in arena.a_and_b(slot):
                part.fill_(float("nan"))
            arena.restore()
            assert torch.equal(adapters.model(probe), before), "its adapter is not read"

    def test_backpropagation_passes_them_by(self, make_toy, probe):
        adapters = xgblora.attach(make_toy(), ["first", "second"], alpha=2.0)
        xgblora.Booster(adapters, colsample=0.5)
        adapters.model(probe).mean().backward()
        (dead,) = dead_layers(adapters)
        for name, layer in adapters.layers.items():
            assert (layer.b.grad is None) == (name == dead)

    def test_with_all_of_them_nothing_is_masked(self, train_toy):
        assert train_toy(steps=5).adapters.arena.untrained is None

    def test_their_banks_do_not_grow(self, make_opt, quantise, randomise_adapters):
        booster = xgblora.Booster(xgblora.attach(quantise(make_opt()), alpha=2.0), colsample=0.5)
        dead = dead_layers(booster.adapters)
        for layer in booster.adapters.layers.values():
            layer.b.data.fill_(0.1 if layer.active else 0.0)
        booster.merge()
        assert dead == {name for name, layer in booster.adapters.layers.items() if layer.bank is None}
