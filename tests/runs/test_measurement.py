"""Runs of `fine_tune` and `measure_only`: what they measure, and flags that contradict each other."""

import json
import logging

import pytest

from xgblora.errors import InputError
from xgblora.evaluation import evaluate
from xgblora.runs.fine_tune import fine_tune
from xgblora.runs.measure_only import measure_only
from xgblora.tasks import TASKS, load_task, sample_sets
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.task_flags import TaskArguments


@pytest.fixture
def run(tmp_path, tiny_model_folder, review_folder):
    """A function `(**flags)` that runs into `tmp_path / "run"` and gives what metrics.json holds."""

    def run(trainer: str = "none", **flags) -> dict:
        folders = {"model_name": str(tiny_model_folder), "dtype": "float32", "data_dir": str(review_folder)}
        counts = {"num_train": 12, "num_dev": 4, "num_eval": 6, "save_model": False}
        args = XGBLoRAArguments(
            output_dir=str(tmp_path / "run"), trainer=trainer, max_steps=2, use_cpu=True, disable_tqdm=True
        )
        measuring = measure_only if trainer == "none" else fine_tune
        return measuring(TaskArguments(**{**folders, **counts, **flags}), args)

    return run


@pytest.fixture
def answers(tmp_path):
    """A function that reads predictions.jsonl."""
    return lambda: [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("flags", [{}, {"sfc": True}, {"num_demos": 2}, {"num_demos": 2, "icl_sfc": True}], ids=str)
def test_an_evaluation_without_training(run, answers, load_folder, review_folder, flags):
    measured = run(**flags)["results"]["zero_shot"]
    sets = sample_sets(load_task("SST2", str(review_folder)), num_train=12, num_dev=4, num_eval=6, seed=0)
    expected = evaluate(
        *load_folder(),
        TASKS["SST2"],
        sets.evaluation,
        max_length=64,
        demonstrations=sets.train[: flags.get("num_demos", 0)],
        calibration=next((name for name in ("sfc", "icl_sfc") if name in flags), "none"),
    )
    assert measured["eval"]["accuracy"] == expected.metrics["accuracy"]
    assert list(measured["eval"]) == ["accuracy", "loss", "examples"]
    assert (measured["dev"]["examples"], measured["eval"]["examples"]) == (4, 6)
    assert answers() == [json.loads(record.as_json()) for record in expected.records]


@pytest.fixture
def load_folder(tiny_model_folder):
    """A function that loads the model and tokenizer of the runs."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return lambda: (
        AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval(),
        AutoTokenizer.from_pretrained(tiny_model_folder),
    )


def test_demonstrations_for_each_example(run, answers):
    run(num_demos=2, num_dev=0, one_demo_set_per_example=True)
    assert len(answers()) == 6


def test_a_trained_model_leaves_its_answers(run, answers):
    results = run(trainer="zo")["results"]
    assert results["trained"]["eval"]["accuracy"] == sum(answer["correct"] for answer in answers()) / 6


def test_a_generation_task_has_its_own_metrics(run, shared_model, shared_data, caplog):
    caplog.set_level(logging.INFO, logger="xgblora")
    metrics = run(
        task_name="SQuAD",
        model_name=str(shared_model("stories260K")),
        data_dir=str(shared_data("squad")),
        num_train=1,
        num_dev=0,
        num_eval=2,
        max_new_tokens=4,
    )
    assert list(metrics["results"]["zero_shot"]["eval"]) == ["f1", "em", "loss", "examples"]
    assert any(line.startswith("f1, held-out set") for line in caplog.messages)


@pytest.mark.parametrize(
    "flags, said",
    [
        ({"num_demos": -1}, "num_demos=-1: must be 0 or more"),
        ({"num_demos": 13}, "num_demos=13: there are only 12 training examples"),
        ({"num_demos": 2, "trainer": "zo"}, "num_demos=2: is for evaluation without training"),
        ({"sfc": True, "trainer": "regular"}, "sfc=True: is for evaluation without training"),
        ({"icl_sfc": True}, "icl_sfc=True: needs demonstrations"),
        ({"one_demo_set_per_example": True}, "one_demo_set_per_example=True: needs demonstrations"),
        ({"num_demos": 1, "one_demo_set_per_example": True}, "num_dev=4 .* give --num_dev 0"),
        ({"num_demos": 49, "num_dev": 0, "one_demo_set_per_example": True}, "the training split has only 48"),
        ({"num_demos": 1, "sfc": True, "icl_sfc": True}, "--sfc and --icl_sfc: choose one"),
        ({"task_name": "SQuAD", "sfc": True}, "sfc=True: the answers of SQuAD are generated"),
    ],
    ids=str,
)
def test_flags_that_contradict_are_refused_before_anything_is_written(run, tmp_path, flags, said):
    with pytest.raises(InputError, match=said):
        run(**flags)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_is_not_measured_in_silence(run_in, tmp_path, capsys):
    trained = run_in(tmp_path / "run", "--max_steps=2", "--save_strategy=steps", "--save_steps=2", "--num_dev=0")
    resumed = f"--resume_from_checkpoint={trained.folder / 'checkpoint-2'}"
    with pytest.raises(SystemExit, match=r"^2$"):
        run_in(tmp_path / "other", "--trainer=none", resumed)
    (line,) = capsys.readouterr().err.splitlines()
    assert "trainer=none measures the base model; make a model of the checkpoint" in line
    assert not (tmp_path / "other").exists()


def test_a_run_that_was_killed_is_not_measured_in_its_folder(run_in, tmp_path, capsys):
    (tmp_path / "run" / ".checkpoint-9.x1").mkdir(parents=True)
    (tmp_path / "run" / "step_loss.csv").write_text("step,loss\n1,0.5\n", encoding="utf-8")
    for overwrite in ((), ("--overwrite",)):
        with pytest.raises(SystemExit, match=r"^2$"):
            run_in(tmp_path / "run", "--trainer=none", "--resume_from_checkpoint=last", *overwrite)
        (line,) = capsys.readouterr().err.splitlines()
        assert "resume_from_checkpoint=last: trainer=none measures the base model" in line
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".checkpoint-9.x1", "step_loss.csv"]
