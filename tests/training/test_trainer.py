"""`XGBLoRATrainer` from Python: what works with transformers' `Trainer` works with it."""

import json
import logging

import pytest
import torch
from transformers import TrainerCallback

import xgblora
from xgblora.errors import InputError
from xgblora.objectives.texts import model_loss
from xgblora.training.trainer import XGBLoRATrainer


@pytest.fixture
def language_data(token_batch):
    """12 examples of `input_ids`, `attention_mask` and `labels`."""
    batch = token_batch(examples=12, length=8)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], labels, strict=True)
    ]


@pytest.fixture
def make_trainer(make_opt, language_data, tmp_path):
    """A function that makes a trainer of a tiny model on 12 examples, 4 a batch."""

    def make(*, callbacks=None, optimizers=(None, None), **flags):
        settings = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "max_steps": 6,
            "logging_steps": 2,
            "eval_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        args = xgblora.XGBLoRAArguments(**{**settings, **flags})
        return xgblora.XGBLoRATrainer(
            make_opt(),
            args,
            train_dataset=language_data,
            eval_dataset=language_data[:4],
            callbacks=callbacks,
            optimizers=optimizers,
        )

    return make


class Recorder(TrainerCallback):
    """Remembers which events it saw, and at which step."""

    def __init__(self):
        self.events = []

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append(("step_end", state.global_step))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.events.append(("log", state.global_step))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.events.append(("evaluate", state.global_step))
        assert metrics["eval_loss"] > 0


@pytest.mark.parametrize("trainer", ["zo", "regular"])
def test_a_callback_sees_steps_logs_and_evaluations(make_trainer, trainer):
    recorder = Recorder()
    make_trainer(callbacks=[recorder], trainer=trainer, eval_strategy="steps", eval_steps=3).train()
    assert [step for event, step in recorder.events if event == "step_end"] == [1, 2, 3, 4, 5, 6]
    assert [step for event, step in recorder.events if event == "log"] == [2, 4, 6]
    assert [step for event, step in recorder.events if event == "evaluate"] == [3, 6]


@pytest.mark.parametrize("trainer", ["zo", "regular"])
def test_a_callback_can_stop_the_run(make_trainer, trainer):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    stopped = make_trainer(callbacks=[Stop()], trainer=trainer)
    stopped.train()
    assert stopped.state.global_step == 2


def test_a_callback_sees_the_model_after_the_merge(make_trainer):
    rounds = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            rounds.append(trainer.booster.round)

    trainer = make_trainer(callbacks=[Look()], xgblora_steps_per_iteration=2)
    trainer.train()
    assert rounds == [1, 2, 2, 3, 3, 4]


def test_the_model_s_own_loss_falls_under_first_order_training(make_trainer):
    trainer = make_trainer(trainer="regular", max_steps=20, learning_rate=3e-2)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.1


def test_the_model_s_own_loss_falls_under_zeroth_order_training(make_trainer):
    trainer = make_trainer(trainer="zo", max_steps=150, learning_rate=3e-3, zo_directions=4, logging_steps=50)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.02
    assert int(trainer.zo.skipped_steps) == 0


@pytest.mark.filterwarnings("error:.*lr_scheduler.step")
def test_a_zeroth_order_step_goes_through_no_parameters_to_look_for_gradients(make_trainer, monkeypatch):
    trainer, walks = make_trainer(trainer="zo"), []

    class Count(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            monkeypatch.setattr(trainer.model, "named_parameters", lambda *_, **__: walks.append(state) or iter(()))

        def on_step_end(self, args, state, control, **kwargs):
            monkeypatch.undo()

    trainer.add_callback(Count())
    trainer.train()
    assert walks == []
    assert {entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry} == {0.0}
    parameter = next(trainer.model.parameters())
    parameter.grad = torch.ones_like(parameter)
    trainer.model.zero_grad()
    assert parameter.grad is None


def test_evaluation_of_the_default_objective_is_the_model_s_loss(make_trainer, make_opt, language_data):
    batch = {name: torch.stack([example[name] for example in language_data[:4]]) for name in language_data[0]}
    with torch.no_grad():
        expected = make_opt()(**batch).loss.item()
    assert make_trainer().evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_only_adapters_train_and_base_weights_stay_until_a_merge(make_trainer, make_opt):
    base = make_opt().state_dict()
    for trainer in ("zo", "regular"):
        trained = make_trainer(trainer=trainer, xgblora_merge_frequency=0)
        trained.train()
        assert all(torch.equal(layer.weight, base[f"{name}.weight"]) for name, layer in trained.adapters.layers.items())
        assert all(bool((layer.b != 0).any()) for layer in trained.adapters.layers.values())


def test_files_are_written_from_python_too(make_trainer, tmp_path):
    make_trainer(xgblora_steps_per_iteration=2).train()
    folder = tmp_path / "run"
    assert len((folder / "step_loss.csv").read_text().splitlines()) == 7
    assert [json.loads(line)["step"] for line in (folder / "merges.jsonl").read_text().splitlines()] == [2, 4, 6]


class TestLearningRate:
    """transformers' schedulers set the learning rate of the zeroth-order step."""

    @staticmethod
    def rates(trainer) -> list[float]:
        """The learning rate of each update."""
        seen, update = [], trainer.zo.update

        def observed(lr=None):
            seen.append(lr)
            return update(lr=lr)

        trainer.zo.update = observed
        trainer.train()
        return seen

    def test_linear_falls_to_zero(self, make_trainer):
        rates = self.rates(make_trainer(lr_scheduler_type="linear", learning_rate=6e-3))
        assert rates == pytest.approx([6e-3, 5e-3, 4e-3, 3e-3, 2e-3, 1e-3])

    def test_warmup_starts_at_zero_and_moves_nothing_there(self, make_trainer):
        trainer = make_trainer(lr_scheduler_type="constant_with_warmup", warmup_steps=2, max_steps=1)
        before = trainer.adapters.arena.master.clone()
        assert self.rates(trainer) == [0.0]
        assert torch.equal(trainer.adapters.arena.master, before)

    def test_the_step_has_the_size_of_the_rate(self, make_trainer):
        steps = []
        for rate in (1e-3, 1e-4):
            trainer = make_trainer(learning_rate=rate, max_steps=1)
            before = trainer.adapters.arena.master.clone()
            trainer.train()
            steps.append((trainer.adapters.arena.master - before).norm().item())
        assert steps[0] == pytest.approx(10 * steps[1], rel=1e-3)


def test_accumulated_batches_step_as_one_large_batch(make_trainer, tmp_path):
    """The mean loss of a zeroth-order step over 3 batches of 4 is that over 12, and so is where it goes."""
    small = make_trainer(gradient_accumulation_steps=3, max_steps=1, logging_steps=1)
    small.train()
    accumulated = (tmp_path / "run" / "step_loss.csv").read_text().splitlines()[1]
    large = make_trainer(per_device_train_batch_size=12, max_steps=1, logging_steps=1)
    # the model's own loss is a mean over tokens, so that only a mean over examples can be compared
    large.train()
    whole = (tmp_path / "run" / "step_loss.csv").read_text().splitlines()[1]
    assert float(accumulated.split(",")[1]) == pytest.approx(float(whole.split(",")[1]), rel=0.05)
    assert small.zo.step_index == large.zo.step_index == 1


def test_accumulation_over_equal_batches_is_exact(make_opt, language_data, tmp_path):
    def per_example(model, batch):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        return torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), batch["labels"].clamp(min=0), reduction="none"
        ).mean(dim=1)

    masters = []
    for size, accumulation in ((4, 3), (12, 1)):
        args = xgblora.XGBLoRAArguments(
            output_dir=str(tmp_path / f"run{size}"),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            xgblora_merge_frequency=0,
            learning_rate=1e-2,
            max_steps=3,
            eval_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = xgblora.XGBLoRATrainer(make_opt(), args, objective=per_example, train_dataset=language_data)
        trainer.train()
        masters.append(trainer.adapters.arena.master.clone())
    assert torch.allclose(*masters, rtol=1e-3, atol=1e-4)


class TestMoments:
    """First-order training and the optimizer's memory of an adapter that was merged."""

    class Watch(TrainerCallback):
        """How many moments the optimizer keeps after each step's merge."""

        def __init__(self):
            self.kept = []

        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            self.kept.append(len(optimizer.state))

    def test_a_merge_clears_them_and_only_a_merge(self, make_trainer):
        watch = self.Watch()
        trainer = make_trainer(callbacks=[watch], trainer="regular", xgblora_steps_per_iteration=2)
        trainer.train()
        parameters = 2 * len(trainer.adapters.layers)
        assert watch.kept == [parameters, 0, parameters, 0, parameters, 0]

    def test_lora_keeps_them(self, make_trainer):
        watch = self.Watch()
        make_trainer(callbacks=[watch], trainer="regular", lora=True).train()
        assert min(watch.kept) > 0

    def test_the_first_step_of_a_round_is_adam_s_first_step(self, make_trainer):
        """Adam's first step moves every number by the learning rate (where its gradient is not next to nothing)."""
        moves = []

        class Move(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                self.before = trainer.adapters.arena.master.clone()

            def on_optimizer_step(self, args, state, control, **kwargs):
                moves.append((trainer.adapters.arena.master - self.before).abs())

        trainer = make_trainer(
            callbacks=[Move()], trainer="regular", xgblora_steps_per_iteration=3, learning_rate=1e-3, max_steps=4
        )
        trainer.train()
        for step in (0, 3):
            moved = moves[step][moves[step] > 1e-5]
            assert moved.numel() > 0
            assert moved.median() == pytest.approx(1e-3, rel=0.02)


class TestAccelerationOfPairs:
    """Stacked forwards give what separate ones do."""

    def test_paired_and_sequential_runs_agree(self, run):
        paired, sequential = (
            run(f"--zo_pairing={pairing}", "--max_steps=6", "--num_dev=0", "--xgblora_steps_per_iteration=3")
            for pairing in ("paired", "sequential")
        )
        for (_, ours), (_, theirs) in zip(paired.losses, sequential.losses, strict=True):
            assert float(ours) == pytest.approx(float(theirs), rel=1e-4)

    def test_several_directions_train(self, run):
        losses = run("--zo_directions=3", "--max_steps=6", "--num_dev=0").losses
        assert len(losses) == 6


def test_a_scalar_loss_runs_one_after_the_other_and_says_so_once(make_trainer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("xgblora"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="xgblora"):
        make_trainer().train()
    # a record is one, however many handlers saw it
    assert len({id(record) for record in caplog.records if "one after the other" in record.getMessage()}) == 1


def test_a_diverged_step_changes_nothing_and_is_counted(make_trainer):
    trainer = make_trainer(max_steps=3, xgblora_merge_frequency=0)
    trainer.zo.objective = lambda model, batch: torch.tensor(float("nan"))
    before = trainer.adapters.arena.master.clone()
    trainer.train()
    assert torch.equal(trainer.adapters.arena.master, before)
    assert int(trainer.zo.skipped_steps) == 3


def test_adapters_that_are_attached_already_are_used(make_opt, language_data, tmp_path):
    model = make_opt()
    adapters = xgblora.attach(model, ["fc1"], alpha=2.0, seed=5)
    args = xgblora.XGBLoRAArguments(output_dir=str(tmp_path), eval_strategy="no", use_cpu=True, max_steps=1)
    trainer = XGBLoRATrainer(model, args, adapters=adapters, train_dataset=language_data)
    assert trainer.adapters is adapters


def test_a_batch_without_labels_says_what_is_missing(make_opt, token_batch):
    with pytest.raises(ValueError, match="give labels in the batch"):
        model_loss(make_opt(), token_batch())


class TestArguments:
    """The flags, from Python."""

    @pytest.mark.parametrize(
        "flags, said",
        [
            ({"lora_alpha": 0}, "lora_alpha=0"),
            ({"lora_alpha": float("nan")}, "lora_alpha=nan"),
            ({"lora_r": 0, "lora": True}, "lora_r=0"),
            ({"zo_eps": 0}, "zo_eps=0"),
            ({"zo_eps": float("inf")}, "zo_eps=inf"),
            ({"learning_rate": -1e-3}, "learning_rate=-0.001"),
            ({"learning_rate": float("nan")}, "learning_rate=nan"),
            ({"weight_decay": -0.1}, "weight_decay=-0.1"),
            ({"weight_decay": float("nan")}, "weight_decay=nan"),
            ({"zo_directions": 0}, "zo_directions=0"),
            ({"zo_normalise": True, "zo_directions": 4}, "zo_normalise=True: needs one-sided estimates"),
            (
                {"zo_normalise": True, "zo_two_sided": False},
                "zo_normalise=True: needs one-sided estimates of 2 or more directions",
            ),
            ({"zo_optimizer": "lion"}, "zo_optimizer=lion: must be one of sgd, momentum, adam, sign"),
            ({"zo_optimizer": "momentum", "zo_momentum": 1.0}, "zo_momentum=1.0: must be 0 or more and below 1"),
            ({"zo_optimizer": "adam", "adam_beta1": -0.5}, "adam_beta1=-0.5"),
            ({"zo_optimizer": "adam", "adam_beta2": float("nan")}, "adam_beta2=nan"),
            ({"zo_optimizer": "adam", "adam_epsilon": 0.0}, "adam_epsilon=0.0: must be a positive"),
            ({"max_steps": 0}, "max_steps=0"),
            ({"max_steps": -2}, "max_steps=-2"),
            ({"num_train_epochs": 0}, "num_train_epochs=0"),
            ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0"),
            ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0"),
            ({"logging_steps": 0}, "logging_steps=0"),
            ({"eval_steps": -1}, "eval_steps=-1"),
            ({"seed": -1}, "seed=-1"),
            ({"seed": 1 << 32}, "seed=4294967296"),
            ({"xgblora_steps_per_iteration": -1}, "xgblora_steps_per_iteration=-1"),
            ({"xgblora_merge_frequency": -1}, "xgblora_merge_frequency=-1"),
            ({"trainer": "first"}, "trainer=first"),
            ({"xgblora": True, "lora": True}, "--xgblora and --lora"),
        ],
    )
    def test_a_value_out_of_range_is_named(self, flags, said):
        with pytest.raises(InputError) as error:
            xgblora.XGBLoRAArguments(output_dir="unused", use_cpu=True, **flags)
        assert said in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "flags, rank, scaling, method",
        [
            ({}, 1, 16.0, "xgblora"),
            ({"lora_r": 8}, 1, 16.0, "xgblora"),
            ({"lora": True, "lora_r": 8}, 8, 2.0, "lora"),
            ({"lora": True, "lora_alpha": 1.0}, 1, 1.0, "lora"),
        ],
    )
    def test_rank_and_scaling_follow_from_the_method(self, flags, rank, scaling, method):
        args = xgblora.XGBLoRAArguments(output_dir="unused", use_cpu=True, **flags)
        assert (args.rank, args.scaling, args.method) == (rank, scaling, method)

    def test_plain_lora_has_no_merge_rule_whatever_the_flags(self):
        args = xgblora.XGBLoRAArguments(output_dir="unused", use_cpu=True, lora=True, xgblora_steps_per_iteration=5)
        assert str(args.merge_policy) == "no merge during training"
