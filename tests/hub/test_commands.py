"""The README's commands, and every built-in task, against a hub on loopback."""

import json
import shlex
from pathlib import Path

import pytest

from tests.hub.repositories import MODEL, SST2_ROWS
from tests.hub.session import ROOT
from xgblora.tasks import TASKS

FEWER = ("--max_steps=4", "--eval_steps=2", "--use_cpu=true", "--dtype=float32", "--disable_tqdm=true")


def readme_command(name: str) -> list[str]:
    """The words after `name` of the README's first command that names the model of the hub."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    return shlex.split(next(line for line in lines if line.startswith(f"{name} --model_name {MODEL}")))[1:]


def metrics_in(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_the_readmes_command(session, hub, tmp_path):
    folder = tmp_path / "run"
    words = readme_command("xgblora-train")
    ending = session.run("train", *words, *FEWER, "--xgblora_steps_per_iteration=2", f"--output_dir={folder}")
    assert ending.status == 0, ending.errors
    metrics = metrics_in(folder)
    assert metrics["training"]["steps"] == 4
    assert metrics["training"]["merges"] == 2
    assert metrics["configuration"]["model_name"] == MODEL
    assert metrics["configuration"]["num_train"] + metrics["configuration"]["num_dev"] == SST2_ROWS
    assert (folder / "model" / "model.safetensors").is_file()
    repository = hub.repositories["models", MODEL]
    kept = json.loads((folder / "base.json").read_text(encoding="utf-8"))
    assert kept["facts"]["files"] == repository.commit("main")


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.hub is not None])
def test_a_task(session, tmp_path, name):
    folder = tmp_path / "run"
    flags = {"task_name": name, "num_train": 8, "num_dev": 2, "num_eval": 4, "max_new_tokens": 2, "save_model": "false"}
    words = [f"--{flag}={value}" for flag, value in flags.items()]
    ending = session.run("train", f"--model_name={MODEL}", *words, *FEWER, f"--output_dir={folder}")
    assert ending.status == 0, ending.errors
    results = metrics_in(folder)["results"]
    assert results["trained"]["eval"]["examples"] == 4
    assert 0 <= results["trained"]["eval"][TASKS[name].metrics[0]] <= 1


def test_the_readmes_comparison(session, tmp_path):
    root = tmp_path / "comparison"
    one = ("--methods", "xgblora_zo", "--seeds", "0", f"--output_root={root}")
    fewer = (*FEWER, "--xgblora_steps_per_iteration=2", "--num_train=8", "--num_dev=2", "--num_eval=4")
    ending = session.run("compare", *readme_command("xgblora-compare"), *fewer, *one)
    assert ending.status == 0, ending.errors
    assert metrics_in(root / "xgblora_zo-seed0")["training"]["merges"] == 2
    assert (root / "comparison.json").is_file()
