"""What --report_to gets beside the losses."""

import math

import pytest
from torch import nn
from transformers import TrainerCallback, TrainerState

import xgblora
from xgblora.tape import StepRecord
from xgblora.training.signals import ReportSignals, SignalShare, promised, root_mean_square
from xgblora.training.trainer import XGBLoRATrainer


def steps(*projected_grads, lr=0.1, applied=True):
    return [StepRecord(number, lr, 0, values, applied) for number, values in enumerate(projected_grads)]


def test_projected_gradients_are_those_of_the_steps_that_moved_something():
    assert root_mean_square(steps((3.0, -5.0), (4.0, 0.0))) == pytest.approx(math.sqrt(50 / 4))
    assert root_mean_square(steps((3.0,), applied=False)) is None


def test_a_step_promises_its_rate_times_the_mean_square():
    assert promised(steps((3.0, -5.0), (4.0, 0.0))) == pytest.approx(0.1 * (17 + 8))
    assert promised(steps((3.0,), applied=False)) == 0.0


def test_the_share_is_what_the_loss_fell_by():
    share = SignalShare()
    assert share.add(2.0, 9.0) is None
    assert share.add(1.5, 1.0) == pytest.approx(0.5)
    assert share.add(math.nan, 1.0) == pytest.approx(0.5)
    assert share.add(1.5, 1.0) == pytest.approx(0.9 * 0.5 / (0.9 * 1.0 + 1.0))
    rising = SignalShare()
    rising.add(1.0, 1.0)
    assert rising.add(2.0, 1.0) < 0


class Reporter(TrainerCallback):
    """What a reporter of transformers is to us."""

    def __init__(self):
        self.entries = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.entries.append((state.global_step, logs))


@pytest.fixture
def reported(run, monkeypatch):
    """A run with a reporter: its entries, and the run."""

    def of(*flags):
        reporter = Reporter()

        def integrations(names):
            return [type(reporter)] if names == ["tensorboard"] else []

        set_callbacks = XGBLoRATrainer._set_callbacks

        def with_reporter(self):
            self.args.report_to = ["tensorboard"]
            self.add_callback(reporter)
            set_callbacks(self)

        monkeypatch.setattr("xgblora.training.trainer.get_reporting_integration_callbacks", integrations)
        monkeypatch.setattr(XGBLoRATrainer, "_set_callbacks", with_reporter)
        done = run("--max_steps=6", "--xgblora_steps_per_iteration=2", "--logging_steps=3", *flags)
        return [entry for entry in reporter.entries if not {"loss", "eval_loss", "train_loss"} & set(entry[1])], done

    return of


def test_steps_and_rounds_are_reported_where_they_are_and_no_file_has_them(reported):
    entries, done = reported()
    assert [(step, sorted(logs)) for step, logs in entries] == [
        (2, ["round", "update_norm"]),
        (3, ["projected_grad"]),
        (4, ["cosine_to_earlier", "round", "update_norm"]),
        (6, ["cosine_to_earlier", "round", "update_norm"]),
        (6, ["projected_grad", "signal_share"]),
    ]
    assert [logs["round"] for _, logs in entries if "round" in logs] == [1, 2, 3]
    assert all(-1.0 <= logs["cosine_to_earlier"] <= 1.0 for _, logs in entries if "cosine_to_earlier" in logs)
    assert not any("projected_grad" in entry for entry in done.entries("training_loss.jsonl"))


def test_with_backpropagation_there_are_rounds_alone(reported):
    entries, _ = reported("--trainer=regular")
    assert [step for step, logs in entries] == [2, 4, 6]


def test_of_the_rounds_before_a_checkpoint_nothing_is_said():
    model = nn.ModuleDict({"first": nn.Linear(5, 3)})
    booster = xgblora.Booster(xgblora.attach(model, ["first"], alpha=2.0))
    reporter = Reporter()
    signals, state = ReportSignals([reporter], booster, None), TrainerState(global_step=7)
    booster.merge()
    signals.on_train_begin(None, state, None)
    signals.on_step_end(None, state, None)
    assert reporter.entries == []
    booster.merge()
    signals.on_step_end(None, state, None)
    assert reporter.entries == [(7, {"round": 2, "update_norm": 0.0})]
