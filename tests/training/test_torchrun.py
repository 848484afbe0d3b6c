"""`torchrun` itself: one run of several processes, and what it makes of those that end.

It imports everything in each process, so one test of it runs with the others; `XGBLORA_PROCESSES=1` runs all.
"""

import sys

import pytest

from tests.fixtures.runs import Run
from tests.fixtures.together import COMMAND, FLAGS, LONG, assert_same, assert_whole, left_by

# xgblora-train, whose process of this number is killed before its sixth step unless it was started again
KILLED = """
import os, signal, sys
from tests.fixtures.together import at_call
from xgblora.cli.train import main
from xgblora.training.zero_order_optimizer import ZeroOrderOptimizer
if os.environ["RANK"] == sys.argv.pop(1) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    at_call(ZeroOrderOptimizer, "step", 6, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
main()
"""


@pytest.fixture(scope="session")
def train(torchrun, tiny_flags):
    """A function `(folder, *flags, launcher, program)`: how `torchrun` ended with two processes of `xgblora-train`.

    `launcher` are flags of its own, `program` the words that each process runs in place of the command.
    """

    def run(folder, *flags, launcher=(), program=(COMMAND,)):
        return torchrun(*program, *tiny_flags, *FLAGS, f"--output_dir={folder}", *flags, launcher=launcher)

    return run


def in_shell(words):
    """A program that is these words of a shell, where "$@" are the flags."""
    return ("bash", "-c", words, "bash")


def test_two_processes_of_torchrun_leave_one_run_and_what_forked_ones_leave(train, train_together, tmp_path):
    done = train(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in run.folder.rglob("*.log")] == ["train.log"]
    assert len(run.losses) == 8 == run.metrics["training"]["steps"]
    assert run.merge_lines == ["step 3", "step 6"]
    assert_whole(train_together(2, tmp_path / "forked"))
    assert_same(left_by(tmp_path / "run"), left_by(tmp_path / "forked"))


@LONG
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--seed=$RANK"], "seed: is 1 in process 1 and 0 in process 0; all processes need the same flags"),
        (
            ["--full", "--zo_parallel=signs", "--xgblora_steps_per_iteration=0"],
            "zo_parallel=signs: is for adapters; --full takes examples or directions",
        ),
    ],
)
def test_what_cannot_work_ends_all_with_status_2_in_one_line(train, tmp_path, flags, line):
    """`torchrun` says which process failed, with its status, and ends with 1 itself."""
    done = train(tmp_path / "run", program=in_shell(f'exec {COMMAND} "$@" {" ".join(flags)}'))
    assert done.returncode == 1
    (said,) = [said for said in done.stderr.splitlines() if said.startswith("error: ")]
    assert said.startswith(f"error: {line}")
    assert "exitcode  : 2" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@LONG
def test_other_backends_and_numbers_of_threads_train_the_same(train, tmp_path):
    own = "export OMP_NUM_THREADS=$((1 + 2 * RANK)) XGBLORA_BACKEND=$([ $RANK = 0 ] && echo host || echo eager)"
    done = train(tmp_path / "run", "--zo_agree_steps=1", program=in_shell(f'{own}; exec {COMMAND} "$@"'))
    assert done.returncode == 0, done.stderr
    assert len(Run(tmp_path / "run").losses) == 8


@LONG
@pytest.mark.parametrize("killed", [0, 1])
def test_torchrun_starts_them_again_and_the_run_goes_on_exactly(train, train_together, tmp_path, killed):
    program = (sys.executable, "-c", KILLED, str(killed))
    done = train(tmp_path / "run", launcher=["--max-restarts=1"], program=program)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith(f"error: of 2 processes this one is gone: {killed} (pid ")
    assert "resuming from" in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert_whole(train_together(2, tmp_path / "alone"))
    assert_same(left_by(tmp_path / "run"), left_by(tmp_path / "alone"))
