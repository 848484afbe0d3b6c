"""Runs that were never run: folders with the files that a run leaves, made up."""

import json
from pathlib import Path

import pytest

from xgblora.comparison.methods import METHODS
from xgblora.comparison.runs import PlannedRun, folder_name
from xgblora.records.run_folder import RunFolder


@pytest.fixture
def planned(tmp_path):
    """A function that plans a run of a method on a seed; nothing is written."""

    def plan(method: str = "lora_zo", seed: int = 0, setting: dict | None = None, **configuration) -> PlannedRun:
        of = METHODS[method]
        flags = {
            "trainer": of.trainer,
            "zo_directions": 1,
            "zo_two_sided": True,
            "gradient_accumulation_steps": 1,
            "staged_eval": False,
            "learning_rate": 1e-3,
            **configuration,
        }
        folder = RunFolder(tmp_path / folder_name(method, seed, setting or {}))
        return PlannedRun(of, seed, setting or {}, folder, [], flags)

    return plan


@pytest.fixture
def finished(planned):
    """A function that plans a run and writes what it would have left.

    `held_out` and `dev` are accuracies, `forwards` what the estimator of a step takes; without it, a run of a version
    that did not say.
    """

    def finish(
        method="lora_zo",
        seed=0,
        setting=None,
        *,
        held_out=0.75,
        dev=0.75,
        losses=(0.7, 0.6),
        forwards=None,
        **configuration,
    ):
        run = planned(method, seed, setting, **configuration)
        folder = run.folder
        folder.path.mkdir(parents=True)
        merges = [1] if run.method.boosts else []

        def measured(accuracy: float) -> dict:
            return {"accuracy": accuracy, "loss": 1.0 - accuracy, "examples": 100}

        metrics = {
            "results": {
                "zero_shot": {"dev": measured(0.5), "eval": measured(0.5)},
                "trained": {"dev": measured(dev), "eval": measured(held_out)},
            },
            "training": {"steps": len(losses), "epochs": 1.0, "merges": len(merges), "steps_per_second": 4.0},
            "environment": {},
            "seconds": 1.0,
            "peak_memory_bytes": 2**30,
        }
        if forwards is not None:
            metrics["training"]["estimator"] = {"name": "some", "directions": 1, "forwards": forwards}
        folder.write_metrics(metrics)
        rows = [f"{step},{loss!r}\n" for step, loss in enumerate(losses, start=1)]
        write(folder.step_loss, "step,loss\n", *rows)
        write(folder.merges, *(json.dumps({"step": step, "held_out_loss": 0.5}) + "\n" for step in merges))
        steps = range(1, len(losses) + 1)
        write(
            folder.eval_loss,
            *(json.dumps({"step": step, "eval_loss": 0.5, "eval_accuracy": dev}) + "\n" for step in steps),
        )
        return run

    return finish


def write(path: Path, *lines: str) -> None:
    path.write_text("".join(lines), encoding="utf-8")
