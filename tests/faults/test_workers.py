"""What goes wrong in a data loader's worker process: the run ends as if it had happened here, and goes on the same."""

import os
import signal

import pytest

from tests.faults.injection import Mistake
from tests.fixtures.runs import Run
from xgblora.boosting import Ledger
from xgblora.cli.train import main
from xgblora.scoring.collator import Collator

FLAGS = (
    *("--max_steps=8", "--xgblora_steps_per_iteration=2", "--save_strategy=steps", "--save_steps=2", "--eval_steps=8"),
    "--dataloader_num_workers=1",
)


def of_a_worker(act):
    """`Collator.__call__` with `act` before the second batch that a worker process makes."""
    here, real, calls = os.getpid(), Collator.__call__, []

    def call(collator, examples):
        if os.getpid() != here:
            calls.append(collator)
            if len(calls) == 2:
                act()
        return real(collator, examples)

    return call


def mistake():
    raise Mistake("a mistake of somebody's own")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(os.name != "posix", reason="workers are forked")
@pytest.mark.parametrize("act", [mistake, killed])
def test_a_fault_in_a_worker(act, run, run_in, tiny_flags, tmp_path, monkeypatch, capsys):
    whole = run(*FLAGS)
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Collator, "__call__", of_a_worker(act))
        with pytest.raises(Mistake if act is mistake else SystemExit):
            main([*tiny_flags, f"--output_dir={folder}", *FLAGS])
    if act is killed:
        said = capsys.readouterr().err.splitlines()
        assert said[-1].startswith("error: "), said
        assert "worker" in said[-1]
    resumed = run_in(folder, *FLAGS, "--resume_from_checkpoint=last")
    assert isinstance(resumed, Run)
    assert resumed.losses == whole.losses
    assert (folder / "tape.bin").read_bytes() == (whole.folder / "tape.bin").read_bytes()
    assert len(Ledger.load(folder / "boosters.safetensors")) == len(Ledger.load(whole.folder / "boosters.safetensors"))
