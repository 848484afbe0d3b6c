"""base + tape and base + ledger are the trained weights, bit for bit, or a line that says why not."""

from dataclasses import replace

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

import xgblora
from tests.zo.toys import next_token_losses
from xgblora import Ledger
from xgblora.adapters.identity import trained_hash
from xgblora.boosting.finish import finish
from xgblora.errors import InputError
from xgblora.ops.merge_rank1 import ROUNDINGS
from xgblora.replaying import rebuild, replay
from xgblora.tape import EndRecord, MergeRecord, StepRecord, Tape
from xgblora.zo import UpdateRule

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def weights_of(adapters):
    return {name: layer.weight.clone() for name, layer in adapters.layers.items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def finished(booster):
    """The trained weights, after the run has come to its end."""
    adapters = booster.adapters
    finish(adapters, booster, step=99, epoch=1.0)
    return weights_of(adapters)


def reloaded(tape, folder):
    tape.save(folder / "tape.bin")
    return Tape.load(folder / "tape.bin")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("directions", "rank"), [(1, 1), (4, 1), (1, 3), (2, 2)])
def test_base_and_tape_and_base_and_ledger_are_the_trained_weights(
    train_toy, make_toy, tmp_path, dtype, rounding, directions, rank
):
    booster = train_toy(dtype=dtype, rounding=rounding, directions=directions, rank=rank, skipped=(2, 9))
    trained = finished(booster)
    assert not same(trained, weights_of(xgblora.attach(make_toy(dtype), ["first", "second"], alpha=2.0)))
    tape = reloaded(booster.tape, tmp_path)
    assert tape.skipped_steps() == 2
    again, verified = replay(make_toy(dtype), tape)
    assert verified
    assert same(weights_of(again.adapters), trained)
    booster.ledger.save(tmp_path / "ledger.safetensors")
    assert len(again.ledger) == len(booster.ledger) == 4
    assert torch.equal(again.ledger.rows(), booster.ledger.rows())
    from_ledger = rebuild(make_toy(dtype), Ledger.load(tmp_path / "ledger.safetensors"))
    assert same(weights_of(from_ledger.adapters), trained)
    assert trained_hash(from_ledger.adapters) == trained_hash(again.adapters)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("rollback", [5, 10])
def test_a_rollback_is_replayed(train_toy, make_toy, tmp_path, rounding, rollback):
    booster = train_toy(dtype=torch.bfloat16, rounding=rounding, rollback=rollback)
    trained = finished(booster)
    again, verified = replay(make_toy(torch.bfloat16), reloaded(booster.tape, tmp_path))
    assert verified
    assert same(weights_of(again.adapters), trained)
    assert len(again.ledger) == len(booster.ledger)
    straight = finished(train_toy(dtype=torch.bfloat16, rounding=rounding))
    assert not same(trained, straight), "the rollback did something"


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "sign"])
@pytest.mark.parametrize(("directions", "rollback"), [(1, None), (3, 10)])
def test_every_optimizer_is_replayed(train_toy, make_toy, tmp_path, optimizer, directions, rollback):
    rule = UpdateRule(optimizer, beta1=0.8, beta2=0.95, epsilon=1e-6)
    # the first step of a round and others within one
    booster = train_toy(optimizer=rule, directions=directions, rollback=rollback, skipped=(2, 4, 9))
    moments = {name: moment.clone() for name, moment in booster.adapters.arena.moments.items()}
    tape = reloaded(booster.tape, tmp_path)
    step = tape.header.step
    assert (step.optimizer, step.beta1, step.beta2, step.epsilon) == (optimizer, 0.8, 0.95, 1e-6)
    stopped, _ = replay(make_toy(), tape)
    assert torch.equal(stopped.adapters.arena.master, booster.adapters.arena.master)
    assert moments.keys() == stopped.adapters.arena.moments.keys()
    assert all(torch.equal(moment, stopped.adapters.arena.moments[name]) for name, moment in moments.items())
    trained = finished(booster)
    assert not same(trained, finished(train_toy(directions=directions, rollback=rollback, skipped=(2, 4, 9))))
    again, verified = replay(make_toy(), reloaded(booster.tape, tmp_path))
    assert verified
    assert same(weights_of(again.adapters), trained)


@pytest.mark.parametrize("normalise", [False, True])
def test_one_sided_runs_are_replayed(train_toy, make_toy, normalise):
    booster = train_toy(directions=3, two_sided=False, normalise=normalise, skipped=(2,))
    trained = finished(booster)
    again, verified = replay(make_toy(), booster.tape)
    assert verified
    assert same(weights_of(again.adapters), trained)


def test_a_run_without_a_merge_is_replayed(train_toy, make_toy):
    booster = train_toy(steps=3)
    trained = finished(booster)
    again, verified = replay(make_toy(), booster.tape)
    assert verified
    assert same(weights_of(again.adapters), trained)


def test_an_untrained_tape_gives_the_base(make_toy, train_toy):
    booster = train_toy(steps=0)
    base = weights_of(booster.adapters)
    finished(booster)
    again, verified = replay(make_toy(), booster.tape)
    assert verified
    assert same(weights_of(again.adapters), base)
    assert len(again.ledger) == 0


def test_the_tape_of_a_stopped_run_gives_the_adapter_in_training(train_toy, make_toy, tmp_path):
    booster = train_toy()
    content = booster.tape.to_bytes()
    (tmp_path / "tape.bin").write_bytes(content[:-3])
    again, verified = replay(make_toy(), Tape.load(tmp_path / "tape.bin", torn_end=True))
    assert not verified
    assert same(weights_of(again.adapters), weights_of(booster.adapters))
    assert not torch.equal(again.adapters.arena.master, booster.adapters.arena.master), "the torn step is missing"
    again, verified = replay(make_toy(), booster.tape)
    assert not verified
    assert torch.equal(again.adapters.arena.master, booster.adapters.arena.master)


def test_what_follows_an_end_is_not_verified(train_toy, make_toy):
    booster = train_toy(steps=3)
    finished(booster)
    booster.tape.record_step(4, 1, torch.ones(1), torch.tensor(True), torch.ones(1))
    _, verified = replay(make_toy(), booster.tape)
    assert not verified


def test_steps_that_were_skipped_change_nothing(train_toy):
    once, twice = train_toy(skipped=range(14)), train_toy(steps=0)
    assert all(not record.applied for record in once.tape.records() if isinstance(record, StepRecord))
    for booster in (once, twice):
        finished(booster)
    assert trained_hash(once.adapters) == trained_hash(twice.adapters)


def test_the_records_can_be_watched_as_they_go_by(train_toy, make_toy):
    booster = train_toy()
    seen = []
    replay(make_toy(), booster.tape, (seen.append(record) or record for record in booster.tape.records()))
    assert seen == list(booster.tape.records())
    assert sum(isinstance(record, MergeRecord) for record in seen) == 3


def test_quantised_layers_are_replayed_into_their_banks(make_toy, train_toy, make_opt, quantise, token_batch):
    def objective(model, batch):
        return model(**batch).logits.float().square().mean(dim=(1, 2))

    model = quantise(make_opt())
    adapters = xgblora.attach(model, alpha=2.0)
    booster = xgblora.Booster(adapters)
    zo = xgblora.ZeroOrder(adapters, objective, lr=1e-3)
    xgblora.start_tape(zo, booster)
    for step in range(6):
        zo.step(token_batch(seed=step))
        if step % 2:
            booster.merge(step=step)
    digest = trained_hash(adapters)
    finish(adapters, booster, step=6, epoch=1.0)
    again, verified = replay(quantise(make_opt()), booster.tape)
    assert verified
    assert trained_hash(again.adapters) == digest
    assert trained_hash(rebuild(quantise(make_opt()), booster.ledger).adapters) == digest
    assert digest != trained_hash(xgblora.attach(quantise(make_opt()), alpha=2.0))


def other_origin(booster, **changes):
    """The tape of `booster` as if its header had said something else, every record as it was."""
    header = replace(booster.tape.header, origin=replace(booster.tape.header.origin, **changes))
    tape = Tape(header)
    for record in booster.tape.records():
        if isinstance(record, StepRecord):
            lr, applied = torch.tensor([record.lr]), torch.tensor(record.applied)
            tape.record_step(record.step, record.seed, lr, applied, torch.tensor(record.projected_grads))
        elif isinstance(record, MergeRecord):
            tape.record_merge(
                record.round, record.step, record.shrinkage, booster.ledger.boosters[record.round - 1].adapters
            )
        elif isinstance(record, EndRecord):
            tape.record_end(record.sha256.hex())
    return tape


def test_the_helper_copies_a_tape(train_toy, make_toy):
    booster = train_toy()
    finished(booster)
    assert other_origin(booster).to_bytes() == booster.tape.to_bytes()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alpha": 3.0}, "the trained weights came out different from what the tape says"),
        ({"seed": 6}, "the adapter of round 1 came out different from what the tape says"),
        ({"rank": 2}, "the layout of the adapters"),
        ({"dtype": "bfloat16"}, "the dtype of the weights is bfloat16 there and float32 here"),
        ({"layers": ("first",)}, "the layout of the adapters"),
        ({"layers": ("third",)}, "this one has no layer third"),
        ({"fingerprint": "0" * 64}, "fingerprint"),
        ({"layout": "0" * 64}, "the layout of the adapters"),
    ],
)
def test_a_tape_of_another_run_is_refused_in_one_line(train_toy, make_toy, changes, said):
    booster = train_toy()
    finished(booster)
    with pytest.raises(InputError, match=said) as raised:
        replay(make_toy(), other_origin(booster, **changes))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["weights", "dtype", "architecture"])
def test_another_model_is_refused_in_one_line(train_toy, make_toy, make_opt, kind):
    booster = train_toy()
    finished(booster)
    others = {
        "weights": lambda: make_toy(seed=1),
        "dtype": lambda: make_toy(torch.bfloat16),
        "architecture": make_opt,
    }
    for redo, what in (
        (lambda model: replay(model, booster.tape), "the tape was recorded on another model: "),
        (lambda model: rebuild(model, booster.ledger), "the ledger belongs to another model: "),
    ):
        with pytest.raises(InputError, match=f"^{what}") as raised:
            redo(others[kind]())
        assert "\n" not in str(raised.value)


def test_a_weight_that_one_bit_was_changed_in_is_another_model(train_toy, make_toy):
    booster = train_toy()
    finished(booster)
    model = make_toy()
    model.second.weight.data.view(torch.int32)[3, 1] ^= 1
    with pytest.raises(InputError, match="fingerprint"):
        replay(model, booster.tape)


def test_no_forward_is_run(make_opt, token_batch):
    adapters = xgblora.attach(make_opt(), "all-linear", alpha=2.0, seed=5)
    booster = xgblora.Booster(adapters)
    zo = xgblora.ZeroOrder(adapters, next_token_losses, lr=1e-2, seed=5)
    xgblora.start_tape(zo, booster)
    calls = []
    hook = register_module_forward_pre_hook(lambda module, _: calls.append(module))
    try:
        zo.step(token_batch())
        assert calls, "or none would be seen"
        booster.merge(step=1)
        trained = finished(booster)
        calls.clear()
        again, verified = replay(make_opt(), booster.tape)
        rebuilt = rebuild(make_opt(), booster.ledger)
    finally:
        hook.remove()
    assert calls == []
    assert verified
    assert same(weights_of(again.adapters), trained)
    assert same(weights_of(rebuilt.adapters), trained)
