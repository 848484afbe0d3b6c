"""Whatever goes wrong in the middle of a run: no finished round is lost, and the run that goes on comes out the same.

A few faults in CI, always the same ones; all 300: XGBLORA_FAULTS=300 pytest tests/faults
"""

import contextlib
import io
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.faults.injection import SURVIVED, Mistake, counted, drawn, inject
from tests.fixtures.runs import empty_figures, unchanged_logger
from xgblora.boosting import Ledger
from xgblora.cli.train import main
from xgblora.records import checkpoint

FLAGS = (
    "--max_steps=8",
    "--xgblora_steps_per_iteration=2",
    "--save_strategy=steps",
    "--save_steps=2",
    "--eval_steps=4",
)
FAULTS = drawn(int(os.environ.get("XGBLORA_FAULTS", "27")))


@pytest.fixture(scope="module")
def whole(run):
    """The run that nothing happened to."""
    return run(*FLAGS)


@pytest.fixture(scope="module")
def totals(run_in, tmp_path_factory) -> dict[str, int]:
    """How often such a run calls each function before which a fault may come."""
    with pytest.MonkeyPatch.context() as patch:
        calls = counted(patch)
        run_in(tmp_path_factory.mktemp("counted") / "run", *FLAGS)
    assert all(calls.values()), calls
    return calls


def ended(words: list[str]) -> tuple[int, list[str]]:
    """How `xgblora-train` ended (-1: by an exception of somebody's own), and what it said on standard error."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            main(words)
            status = 0
        except SystemExit as exit:
            status = exit.code or 0
        except Mistake:
            status = -1
    return status, errors.getvalue().splitlines()


def rounds_in(folder: Path) -> int:
    """The rounds that a run which goes on from `folder` has already."""
    newest, _ = checkpoint.newest_whole(folder)
    return len(Ledger.load(newest / "boosters.safetensors")) if newest else 0


@pytest.mark.parametrize("fault", FAULTS, ids=map(str, FAULTS))
def test_a_fault(fault, whole, totals, run_in, tiny_flags, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, unchanged_logger(), empty_figures():
        came = inject(fault, totals[fault.function], folder, patch)
        status, errors = ended([*tiny_flags, f"--output_dir={folder}", *FLAGS])
    assert came()
    if fault.kind in SURVIVED:
        assert status == 0, errors
        assert all(tensor.isfinite().all() for tensor in type(whole)(folder).weights().values())
        return
    if fault.kind == "folder vanishes":
        # what it held is gone, and the run begins again in the same place
        shutil.rmtree(folder, ignore_errors=True)
    elif status:
        assert rounds_in(folder) == max(map(checkpoint.step_of, checkpoint.checkpoints_in(folder)), default=0) // 2
    assert_said(status, errors)
    resumed = run_in(folder, *FLAGS, "--resume_from_checkpoint=last") if status or not folder.exists() else None
    assert_same(resumed or type(whole)(folder), whole)


def assert_said(status: int, errors: list[str]) -> None:
    """One line, the last, says what it was; no traceback but that of somebody's own exception."""
    if status > 0:
        assert errors[-1].startswith(("error: ", "interrupted", "terminated")), errors
        assert not any(line.startswith("Traceback") for line in errors), errors


def assert_same(resumed, whole) -> None:
    """Losses, ledger, tape and weights are those of the run that nothing happened to, and nothing is half-written."""
    assert resumed.losses == whole.losses
    assert torch.equal(*(Ledger.load(one.folder / "boosters.safetensors").rows() for one in (whole, resumed)))
    assert (resumed.folder / "tape.bin").read_bytes() == (whole.folder / "tape.bin").read_bytes()
    ours, theirs = resumed.weights(), whole.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {path.name for path in resumed.folder.iterdir()} == {path.name for path in whole.folder.iterdir()}


def test_a_figure_that_cannot_be_drawn(whole, run_in, tmp_path, monkeypatch):
    monkeypatch.setattr("xgblora.runs.loss_figure.draw", lambda *arguments, **keywords: 1 / 0)
    run = run_in(tmp_path / "run", *FLAGS)
    assert "no figure: it could not be drawn (ZeroDivisionError: division by zero)" in run.log
    assert run.losses == whole.losses
    assert all(torch.equal(run.weights()[name], tensor) for name, tensor in whole.weights().items())
    assert run.metrics["training"]["steps"] == 8
