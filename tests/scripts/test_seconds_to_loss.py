"""scripts/seconds_to_loss.py: when two methods of a comparison had the same development loss."""

import json
import runpy
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "seconds_to_loss.py"


@pytest.fixture
def said_of(monkeypatch, capsys, tmp_path):
    """A function `(baseline, other)` that runs the script on the comparison in `tmp_path`; the lines that it prints."""

    def run(*methods: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [str(PATH), str(tmp_path), *methods])
        runpy.run_path(str(PATH), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def leave(tmp_path):
    """A function `(name, seconds, losses)` that leaves a run of 10 steps for each loss."""

    def run(name: str, seconds: float, losses: list[float]) -> None:
        folder = tmp_path / name
        folder.mkdir()
        metrics = {"training": {"seconds": seconds, "steps": 10 * len(losses)}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        entries = [{"step": 10 * number, "eval_loss": loss} for number, loss in enumerate(losses, start=1)]
        (folder / "eval_loss.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))

    return run


def test_the_lowest_loss_that_both_reach_is_looked_for_in_each_seed(said_of, leave):
    leave("slow-seed0", 40.0, [0.9, 0.7, 0.6, 0.5])
    leave("fast-seed0", 12.0, [0.8, 0.6, 0.55])
    # the other one stops higher, and rises again
    leave("slow-seed1", 20.0, [0.9, 0.4])
    leave("fast-seed1", 40.0, [0.9, 0.6, 0.3, 0.5])
    leave("slow-seed2", 10.0, [0.5])
    leave("fast-seed2", 10.0, [0.5])
    assert said_of("slow", "fast") == [
        "seed0: loss 0.5500, slow 40.0 s, fast 12.0 s, 0.30",
        "seed1: loss 0.4000, slow 20.0 s, fast 30.0 s, 1.50",
        "seed2: loss 0.5000, slow 10.0 s, fast 10.0 s, 1.00",
        "median 1.00",
    ]
