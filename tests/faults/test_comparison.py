"""Whatever goes wrong in the middle of a comparison: the same command goes on, and the result is the same.

A few faults in CI, always the same ones; more: XGBLORA_FAULTS=300 pytest tests/faults
"""

import json
import os
from pathlib import Path

import pytest

from tests.faults.injection import SURVIVED, Fault, Mistake, counted, drawn, inject
from xgblora.cli import train
from xgblora.cli.compare import main
from xgblora.comparison import figures, runs

FLAGS = (
    *("--max_steps=4", "--eval_steps=2", "--xgblora_steps_per_iteration=2", "--save_strategy=steps", "--save_steps=2"),
    *("--methods", "lora_zo", "xgblora_zo", "--seeds", "3", "--lora_rank=1"),
)
# what survives is the same as in a single run
FAULTS = [
    fault
    for fault in drawn(max(12, int(os.environ.get("XGBLORA_FAULTS", "0")) // 3), seed=1)
    if fault.kind not in SURVIVED
]
# as a run ends, and in the middle of the second one
FAULTS += [
    Fault("folder vanishes", "xgblora.boosting.booster.Booster.merge", 0.1),
    Fault("folder vanishes", "xgblora.scoring.collator.Collator.__call__", 0.57),
]


@pytest.fixture
def compare(tiny_flags, monkeypatch, capsys):
    """A function `(root)` that runs the comparison, its runs in this process; its exit status."""
    words = [flag for flag in tiny_flags if not flag.startswith("--seed")]

    def start(run, keep_open=()) -> int:
        try:
            train.main(run.words)
        except Mistake:
            return 1
        except SystemExit as exit:
            if exit.code in (130, 143):
                # the process that waits gets the signal too
                raise {130: KeyboardInterrupt, 143: SystemExit(143)}[exit.code] from None
            return exit.code or 0
        return 0

    monkeypatch.setattr(runs, "start_process", start)
    monkeypatch.setattr(figures, "draw", lambda *arguments, **keywords: None)
    monkeypatch.setattr("xgblora.runs.run_figures.draw", lambda *arguments, **keywords: None)

    def run(root: Path) -> int:
        capsys.readouterr()
        try:
            main([*words, *FLAGS, f"--output_root={root}"])
        except SystemExit as exit:
            return exit.code or 0
        except Mistake:
            return -1
        return 0

    return run


def measured(root: Path) -> list[tuple[str, str, bytes]]:
    """The losses and the boosters of every run."""
    assert len(json.loads((root / "comparison.json").read_text(encoding="utf-8"))["runs"]) == 2
    return [
        (folder.name, (folder / "step_loss.csv").read_text(), (folder / "boosters.safetensors").read_bytes())
        for folder in sorted(root.glob("*-seed3"))
    ]


@pytest.mark.parametrize("fault", FAULTS, ids=map(str, FAULTS))
def test_a_fault(fault, compare, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        calls = counted(patch)
        assert compare(tmp_path / "whole") == 0
    root = tmp_path / "faulty"
    with pytest.MonkeyPatch.context() as patch:
        came = inject(fault, calls[fault.function], root, patch)
        compare(root)
    assert came()
    assert compare(root) == 0
    assert measured(root) == measured(tmp_path / "whole")
