"""What must be the same in a run that is resumed, and what may change."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from xgblora.adapters import Origin
from xgblora.errors import InputError
from xgblora.records import checkpoint
from xgblora.training import TaskArguments, XGBLoRAArguments, XGBLoRATrainer
from xgblora.training.run_identity import identity_of_examples, identity_of_flags, identity_of_task

# 3 batches an epoch
FLAGS = ("--xgblora_steps_per_iteration=3", "--max_steps=6", "--save_strategy=steps", "--save_steps=2")
SCHEDULED = (*FLAGS, "--lr_scheduler_type=linear", "--warmup_steps=2")
FIRST_ORDER = (*FLAGS, "--trainer=regular", "--eval_steps=2")
BEST = (*FLAGS, "--load_best_model_at_end", "--eval_steps=2")
ADAPTIVE = ("--xgblora_adaptive_merge", "--eval_steps=1", "--max_steps=6", "--save_strategy=steps", "--save_steps=2")
BY_EPOCHS = ("--xgblora_merge_frequency=1", "--max_steps=6", "--save_strategy=steps", "--save_steps=2")

REFUSED = [
    (FLAGS, "--zo_eps=1e-2", "zo_eps is 0.001 there and 0.01 here"),
    (FLAGS, "--zo_directions=2", "zo_directions is 1 there and 2 here"),
    (FLAGS, "--zo_pairing=sequential", "zo_pairing is auto there and sequential here"),
    (FLAGS, "--per_device_train_batch_size=2", "per_device_train_batch_size is 4 there and 2 here"),
    (FLAGS, "--gradient_accumulation_steps=2", "gradient_accumulation_steps is 1 there and 2 here"),
    (FLAGS, "--dataloader_drop_last", "dataloader_drop_last is False there and True here"),
    (FLAGS, "--data_seed=1", "data_seed is None there and 1 here"),
    (FLAGS, "--train_sampling_strategy=sequential", "train_sampling_strategy is random there and sequential here"),
    (FLAGS, "--xgblora_steps_per_iteration=2", "xgblora_steps_per_iteration is 3 there and 2 here"),
    (FLAGS, "--xgblora_steps_per_iteration=0", "xgblora_steps_per_iteration is 3 there and 0 here"),
    (BY_EPOCHS, "--xgblora_merge_frequency=2", "xgblora_merge_frequency is 1 there and 2 here"),
    (FLAGS, "--load_best_round_at_end", "load_best_round_at_end is False there and True here"),
    (FLAGS, "--early_stopping_rounds=2", "early_stopping_rounds is 0 there and 2 here"),
    (FLAGS, "--lr_scheduler_type=linear", "lr_scheduler_type is constant there and linear here"),
    (SCHEDULED, "--warmup_steps=3", "warmup_steps is 2.0 there and 3.0 here"),
    (SCHEDULED, "--max_steps=8", "max_steps is 6 there and 8 here"),
    (ADAPTIVE, "--xgblora_adaptive_patience=7", "xgblora_adaptive_patience is 2 there and 7 here"),
    (ADAPTIVE, "--eval_steps=2", "eval_steps is 1.0 there and 2 here"),
    (ADAPTIVE, "--per_device_eval_batch_size=2", "per_device_eval_batch_size is 32 there and 2 here"),
    # its last round ended with the run
    (ADAPTIVE, "--max_steps=8", "max_steps is 6 there and 8 here"),
    (FIRST_ORDER, "--max_grad_norm=0.1", "max_grad_norm is 1.0 there and 0.1 here"),
    (FIRST_ORDER, "--adam_beta1=0.8", "adam_beta1 is 0.9 there and 0.8 here"),
    (BEST, "--eval_on_start", "eval_on_start is False there and True here"),
    # its last model may have been the best, and is none of a longer run's
    (BEST, "--max_steps=8", "max_steps is 6 there and 8 here"),
    (FLAGS, "--objective=classification", "objective is option_nll there and classification here"),
    (FLAGS, "--num_train=8", "num_train is 12 there and 8 here"),
    (FLAGS, "--num_dev=3", "num_dev is 4 there and 3 here"),
    (FLAGS, "--train_set_seed=1", "train_set_seed is 3 there and 1 here"),
    (FLAGS, "--max_length=40", "max_length is 64 there and 40 here"),
]


@pytest.mark.parametrize("flags, changed, said", REFUSED, ids=[f"{changed} {said}" for _, changed, said in REFUSED])
def test_what_decides_the_rest_of_a_run_must_not_change(run, run_in, tmp_path, capsys, flags, changed, said):
    folder = run(*flags).folder / "checkpoint-4"
    assert said in refusal(run_in, tmp_path, capsys, folder, *flags, changed)


def refusal(run_in, tmp_path, capsys, folder: Path, *flags: object) -> str:
    """The one line with which going on from `folder` is refused; nothing is written."""
    with pytest.raises(SystemExit) as exit:
        run_in(tmp_path / "r", *flags, f"--resume_from_checkpoint={folder}")
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: resume_from_checkpoint={folder}: ")
    assert not (tmp_path / "r").exists()
    return line


def test_another_text_in_the_data_is_another_run(run, run_in, review_folder, tmp_path, capsys):
    data = shutil.copytree(review_folder, tmp_path / "data")
    text = (data / "train.tsv").read_text(encoding="utf-8")
    (data / "train.tsv").write_text(text.replace("superb", "superb ,"), encoding="utf-8")
    folder = run(*FLAGS).folder / "checkpoint-4"
    line = refusal(run_in, tmp_path, capsys, folder, *FLAGS, f"--data_dir={data}")
    assert "the digest of the " in line and " examples is " in line


ALLOWED = {
    "logged more often": "--logging_steps=1",
    "evaluated more often": "--eval_steps=2",
    "evaluated in other batches": "--per_device_eval_batch_size=2",
    "not evaluated": "--eval_strategy=no",
    "saved more often": "--save_steps=1",
    "fewer checkpoints kept": "--save_total_limit=1",
    "not saved": "--save_strategy=no",
    "another held-out set": "--num_eval=4",
    "without the model": "--save_model=false",
    "merged by steps, so that epochs do not count": "--xgblora_merge_frequency=5",
    "data that were moved": "--data_dir",
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_decides_nothing_may_change(run, run_in, review_folder, tmp_path, what):
    flag = ALLOWED[what]
    if flag == "--data_dir":
        flag = f"--data_dir={shutil.copytree(review_folder, tmp_path / 'data')}"
    whole = run(*FLAGS)
    resumed = run_in(tmp_path / "r", *FLAGS, flag, f"--resume_from_checkpoint={whole.folder / 'checkpoint-4'}")
    assert resumed.losses == whole.losses[4:]
    assert (tmp_path / "r" / "tape.bin").read_bytes() == (whole.folder / "tape.bin").read_bytes()


def test_a_run_may_be_made_longer_where_no_schedule_ends_with_it(run, run_in, tmp_path):
    longer = run(*FLAGS, "--max_steps=10")
    for folder in ("checkpoint-4", "checkpoint-6"):
        start = run(*FLAGS).folder / folder
        resumed = run_in(tmp_path / folder, *FLAGS, "--max_steps=10", f"--resume_from_checkpoint={start}")
        assert resumed.losses == longer.losses[int(folder[-1]) :]
        expected = longer.weights()
        for name, weight in resumed.weights().items():
            assert torch.equal(weight, expected[name])


def test_dropout_goes_on_the_same_way_however_often_a_run_was_evaluated(run, run_in, tmp_path):
    """A run is evaluated where it ends, too, which a longer one is not there."""
    start = run(*FIRST_ORDER, "--max_steps=5").folder / "checkpoint-5"
    longer = (*FIRST_ORDER, "--max_steps=8")
    resumed = run_in(tmp_path / "r", *longer, "--eval_steps=3", f"--resume_from_checkpoint={start}")
    assert [entry["step"] for entry in run(*longer).entries("eval_loss.jsonl")] == [2, 4, 6, 8]
    assert resumed.losses == run(*longer).losses[5:]
    expected = run(*longer).weights()
    for name, weight in resumed.weights().items():
        assert torch.equal(weight, expected[name])


def test_how_often_is_that_of_the_flags_and_not_of_the_checkpoint(run, run_in, tmp_path, monkeypatch):
    start = run(*FLAGS).folder / "checkpoint-2"
    often = ("--logging_steps=1", "--eval_steps=2", "--save_steps=3")
    warnings = []
    monkeypatch.setattr(logging.getLogger("transformers.trainer_utils"), "handle", warnings.append)
    resumed = run_in(tmp_path / "r", *FLAGS, *often, f"--resume_from_checkpoint={start}")
    assert [entry["step"] for entry in resumed.entries("training_loss.jsonl")] == [3, 4, 5, 6]
    assert [entry["step"] for entry in resumed.entries("eval_loss.jsonl")] == [4, 6]
    assert warnings == []
    assert [path.name for path in checkpoint.checkpoints_in(tmp_path / "r")] == ["checkpoint-6", "checkpoint-3"]


def test_a_checkpoint_of_the_format_before_is_read_but_not_gone_on_from(run, run_in, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(run(*FLAGS).folder / "checkpoint-4", tmp_path / "old" / "checkpoint-4")
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text(encoding="utf-8"))
    monkeypatch.setattr(checkpoint, "FORMAT", "xgblora-checkpoint-1")
    (folder / checkpoint.MANIFEST).unlink()
    origin = Origin.from_json(manifest["origin"])
    checkpoint.seal(folder, origin, step=4, epoch=manifest["epoch"], run={}, unlogged=manifest["unlogged"])
    monkeypatch.undo()
    assert len(checkpoint.ledger_of(folder)) == 2
    assert "is of an older version" in refusal(run_in, tmp_path, capsys, folder, *FLAGS)


def test_a_checkpoint_is_hashed_once(run, run_in, tmp_path, monkeypatch):
    start = shutil.copytree(run(*FLAGS).folder / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    hashed, digest = [], checkpoint._hashed
    monkeypatch.setattr(checkpoint, "_SETTLED_AFTER", 0)
    monkeypatch.setattr(checkpoint, "_hashed", lambda path: hashed.append(path) or digest(path))
    run_in(tmp_path / "run", *FLAGS, "--resume_from_checkpoint=last")
    of_start = sorted(path.name for path in hashed if path.parent == start)
    assert of_start == sorted(path.name for path in start.iterdir() if path.name != checkpoint.MANIFEST)


class TestFromPython:
    """What the trainer cannot know is what it is told."""

    @pytest.fixture
    def make_trainer(self, make_opt, token_batch, tmp_path):
        """A function `(identity, examples)` that makes a trainer which goes on from the checkpoint of another."""
        batch = token_batch(examples=8)
        data = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
        for example in data:
            example["labels"] = example["input_ids"].masked_fill(example["attention_mask"] == 0, -100)

        def make(identity: dict, examples: int = 8, resumed: Path | None = None) -> XGBLoRATrainer:
            args = XGBLoRAArguments(
                output_dir=str(tmp_path / "run"),
                max_steps=2,
                eval_strategy="no",
                save_strategy="steps",
                save_steps=1,
                use_cpu=True,
                disable_tqdm=True,
                resume_from_checkpoint=resumed and str(resumed),
            )
            return XGBLoRATrainer(make_opt(), args, train_dataset=data[:examples], identity=identity)

        return make

    def test_it_is_part_of_the_checkpoint(self, make_trainer, tmp_path):
        make_trainer({"reward": ("length", 2)}).train()
        start = tmp_path / "run" / "checkpoint-1"
        make_trainer({"reward": ("length", 2)}, resumed=start)
        with pytest.raises(InputError, match=r"reward is \['length', 2\] there and \['length', 3\] here"):
            make_trainer({"reward": ("length", 3)}, resumed=start)
        with pytest.raises(InputError, match=r"reward is \['length', 2\] there and None here"):
            make_trainer({}, resumed=start)
        with pytest.raises(InputError, match="the number of training examples is 8 there and 6 here"):
            make_trainer({"reward": ("length", 2)}, 6, resumed=start)


def test_the_digest_of_examples_sees_order_and_content():
    digests = [identity_of_examples(*sets) for sets in (([1, 2], []), ([2, 1], []), ([1], [2]), ([1, 2], [2]))]
    assert len({json.dumps(digest) for digest in digests}) == 4


def test_an_identity_is_plain_json():
    args = XGBLoRAArguments(output_dir="x", use_cpu=True, trainer="regular", lr_scheduler_type="cosine")
    identity = identity_of_flags(args)
    assert json.loads(json.dumps(identity)) == identity
    assert all(type(value) in (str, int, float, bool, type(None), dict) for value in identity.values())


# a checkpoint compares these names: one more or less, and those that were written before are of another run
OF_EVERY_RUN = (
    "method trainer seed learning_rate lr_scheduler_type lr_scheduler_kwargs weight_decay per_device_train_batch_size "
    "gradient_accumulation_steps train_sampling_strategy data_seed dataloader_drop_last rounding xgblora_reinit "
    "lora_init xgblora_shrinkage xgblora_colsample early_stopping_rounds load_best_round_at_end "
    "load_best_model_at_end"
)
OF_ESTIMATES = (
    "xgblora_hard_examples zo_eps zo_directions zo_distribution zo_two_sided zo_normalise zo_pairing zo_optimizer"
)
OF_BACKPROPAGATION = (
    "optim optim_args optim_target_modules adam_beta1 adam_beta2 adam_epsilon max_grad_norm bf16 fp16 "
    "neftune_noise_alpha"
)
OF_POPULATIONS = (
    "reward reward_weights reward_time_limit members sigma sigma_end pairs shaping decay noise_reuse "
    "prompts_per_step completions temperature top_p stop"
)
OF_EVALUATIONS = "eval_strategy eval_steps eval_delay eval_on_start staged_eval"
OF_BEST_MODEL = "metric_for_best_model greater_is_better"
OF_MERGES_BY_EPOCHS = "xgblora_adaptive_merge xgblora_steps_per_iteration xgblora_merge_frequency"
OF_ADAPTIVE_MERGES = (
    "xgblora_adaptive_merge xgblora_adaptive_ema xgblora_adaptive_patience xgblora_adaptive_threshold "
    "xgblora_adaptive_min_steps xgblora_adaptive_max_steps"
)


@pytest.mark.parametrize(
    "flags, named",
    [
        ({}, [OF_ESTIMATES, OF_MERGES_BY_EPOCHS]),
        (
            {"xgblora_steps_per_iteration": 3, "zo_optimizer": "momentum", "lr_scheduler_type": "inverse_sqrt"},
            [OF_ESTIMATES, "xgblora_adaptive_merge xgblora_steps_per_iteration zo_momentum warmup_steps"],
        ),
        (
            {"xgblora_adaptive_merge": True, "max_steps": 6},
            [OF_ESTIMATES, OF_ADAPTIVE_MERGES, OF_EVALUATIONS, "per_device_eval_batch_size max_steps"],
        ),
        ({"full": True, "zo_optimizer": "adam"}, [OF_ESTIMATES, "adam_beta1 adam_beta2 adam_epsilon"]),
        (
            {"lora": True, "trainer": "regular", "lr_scheduler_type": "linear"},
            [OF_BACKPROPAGATION, "warmup_steps max_steps num_train_epochs"],
        ),
        (
            {"lora": True, "load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 100},
            [OF_ESTIMATES, OF_EVALUATIONS, OF_BEST_MODEL, "per_device_eval_batch_size max_steps num_train_epochs"],
        ),
        (
            {"trainer": "population", "reward": ["rewards.py:one"], "prompts": "rows.jsonl"},
            [OF_POPULATIONS, OF_MERGES_BY_EPOCHS],
        ),
        ({"trainer": "none", "load_best_round_at_end": True}, [OF_MERGES_BY_EPOCHS, "per_device_eval_batch_size"]),
    ],
)
def test_what_counts_in_a_run_is_named(flags, named):
    identity = identity_of_flags(XGBLoRAArguments(output_dir="x", use_cpu=True, **flags))
    assert sorted(identity) == sorted(" ".join([OF_EVERY_RUN, *named]).split())


def test_generated_answers_count_where_the_objective_is_of_them():
    always = {"task_name": "SQuAD", "num_train": 1000, "num_dev": 500, "train_set_seed": 3, "max_length": 64}
    always |= {"head": False}
    for objective, more in (("accuracy", {}), ("f1", {"max_new_tokens": 50})):
        task = TaskArguments(task_name="SQuAD", objective=objective)
        assert identity_of_task(task, seed=3, max_length=64) == {**always, "objective": objective, **more}
