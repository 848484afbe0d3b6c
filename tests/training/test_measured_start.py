"""A measured round start in a run of the trainer: it gets batches; checkpoints, tape and ledger carry its starts."""

import pytest
import torch

import xgblora
from xgblora import Ledger, Tape
from xgblora.adapters.adapter_set import fresh_adapter
from xgblora.boosting.finish import finish
from xgblora.boosting.starts import REINITS, Measured
from xgblora.replaying import rebuild, replay


@pytest.fixture
def measured(monkeypatch):
    """Registers the strategy `by_loss`; gives what it saw: of each start the round and the ids of its batches."""
    seen = []

    def measure(adapters, samples, round):
        start = fresh_adapter(adapters.arena.slots, adapters.seed, round, adapters.arena.master.device, b_size=0.01)
        batches = list(samples.batches(round, 8))
        assert not any("grid" in batch for batch in batches)
        seen.append((round, [batch["input_ids"] for batch in batches]))
        return start * torch.stack([samples.objective(adapters.model, batch).mean() for batch in batches]).mean()

    monkeypatch.setitem(REINITS, "by_loss", Measured(measure, starts_at_zero=False))
    return seen


@pytest.fixture
def make_trainer(make_opt, token_batch, tmp_path):
    """A function `(folder, **flags)` that makes a trainer of a tiny model on 12 examples, 4 a batch."""
    batch = token_batch(examples=12, length=8)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    data = [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], labels, strict=True)
    ]

    def make(folder, **flags):
        settings = {
            "output_dir": str(tmp_path / folder),
            "xgblora_reinit": "by_loss",
            "xgblora_steps_per_iteration": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "max_steps": 7,
            "eval_strategy": "no",
            "save_strategy": "steps",
            "save_steps": 3,
            "use_cpu": True,
            "disable_tqdm": True,
        }
        args = xgblora.XGBLoRAArguments(**{**settings, **flags})
        return xgblora.XGBLoRATrainer(make_opt(), args, train_dataset=data)

    return make


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def end(trainer):
    finish(trainer.adapters, trainer.booster, step=7, epoch=1.0)
    return trainer.adapters.weights()


@pytest.mark.parametrize("kind", ["zo", "regular"])
def test_a_resumed_run_measures_the_same_and_base_and_records_are_the_weights(
    make_trainer, make_opt, measured, tmp_path, kind
):
    whole = make_trainer("whole", trainer=kind)
    whole.train()
    assert [round for round, _ in measured] == [0, 1, 2, 3]
    (_, first), (_, second), *_ = measured
    assert [tuple(ids.shape) for ids in first] == [(8, 8)]
    assert not same(first, second), "each round has examples of its own"
    # step 3 is in the second round, whose start was measured before
    resumed = make_trainer("resumed", trainer=kind)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert [round for round, _ in measured[4:]] == [2, 3]
    for (_, ours), (_, theirs) in zip(measured[2:4], measured[4:], strict=True):
        assert same(ours, theirs)
    weights = end(whole)
    assert same(end(resumed), weights)
    assert same(resumed.booster.ledger.measured.values(), whole.booster.ledger.measured.values())
    whole.booster.save_ledger(tmp_path / "ledger.safetensors")
    assert same(rebuild(make_opt(), Ledger.load(tmp_path / "ledger.safetensors")).adapters.weights(), weights)
    if kind == "zo":
        whole.tape.save(tmp_path / "tape.bin")
        assert whole.tape.to_bytes() == resumed.tape.to_bytes()
        again, verified = replay(make_opt(), Tape.load(tmp_path / "tape.bin"))
        assert verified
        assert same(again.adapters.weights(), weights)
    assert len(measured) == 6


def test_other_starts_are_given_nothing_to_look_at(make_trainer):
    assert make_trainer("plain", xgblora_reinit="warm").booster.samples is None
