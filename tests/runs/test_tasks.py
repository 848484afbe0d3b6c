"""Every task trains and is evaluated on real data, and so does a task of one's own."""

import json
import logging

import pytest

from xgblora.runs.fine_tune import fine_tune
from xgblora.tasks import TASKS
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.task_flags import TaskArguments


@pytest.fixture
def train(tmp_path, shared_model):
    """A function `(**flags)` that trains stories260K for 8 zeroth-order steps and gives what metrics.json holds."""

    def train(**flags) -> dict:
        settings = {"num_train": 3, "num_dev": 1, "num_eval": 2, "max_length": 224, "save_model": False, **flags}
        task = TaskArguments(model_name=str(shared_model("stories260K")), dtype="float32", **settings)
        args = XGBLoRAArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=8,
            xgblora_steps_per_iteration=4,
            per_device_train_batch_size=2,
            eval_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        return fine_tune(task, args)

    return train


@pytest.mark.parametrize("name", TASKS)
def test_a_task_trains(train, shared_data, name):
    metrics = train(
        task_name=name,
        data_dir=str(shared_data(name.lower())),
        objective="option_nll" if TASKS[name].generation or name in ("Copa", "ReCoRD") else "classification",
    )
    assert metrics["training"]["steps"] == 8
    assert metrics["training"]["skipped_steps"] == 0
    assert metrics["training"]["merges"] == 2
    assert metrics["configuration"]["task_name"] == name
    for when in ("zero_shot", "trained"):
        assert 0 < metrics["results"][when]["eval"]["loss"] < 20
        assert 0 <= metrics["results"][when]["eval"][TASKS[name].metrics[0]] <= 1
    # it is the model that is trained
    assert metrics["results"]["trained"]["eval"]["loss"] != metrics["results"]["zero_shot"]["eval"]["loss"]


def test_a_task_of_one_s_own_trains(train, tmp_path, caplog):
    rows = [{"text": text, "mood": mood} for text, mood in (("a gem", "up"), ("no fun", "down"))] * 5
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "mood.yaml"
    file.write_text("template: '{text} so I am'\nlabel: mood\nlabel_words: {up: happy, down: sad}\ndata: all.jsonl\n")
    with caplog.at_level(logging.INFO, logger="xgblora"):
        metrics = train(task_file=str(file), objective="classification")
    assert metrics["configuration"]["task_name"] == "mood"
    assert metrics["configuration"]["task_file"] == str(file)
    assert metrics["results"]["trained"]["eval"]["examples"] == 2
    assert f"mood from {file}: 3 train, 1 dev, 2 held-out examples" in caplog.text


def test_the_f1_of_generated_answers_trains(train, shared_data):
    metrics = train(task_name="SQuAD", data_dir=str(shared_data("squad")), objective="f1", max_new_tokens=2)
    assert metrics["training"]["steps"] == 8
    assert metrics["training"]["skipped_steps"] == 0
    for when in ("zero_shot", "trained"):
        measured = metrics["results"][when]["eval"]
        assert measured["loss"] == pytest.approx(1 - measured["f1"])
