"""One of three processes is killed: all end in one line, and the same command leaves what a run left alone does.

They are forked from this one. `XGBLORA_PROCESSES=1` runs the long form: 30 kills instead of 3.
"""

import os
import random
import signal

import pytest

from tests.fixtures.together import assert_same, assert_whole, at_call, left_by
from xgblora.boosting import Booster
from xgblora.records import checkpoint
from xgblora.tape import Tape
from xgblora.training.process_trainer import ProcessTrainer
from xgblora.training.zero_order_optimizer import ZeroOrderOptimizer

KILLS = 30 if os.environ.get("XGBLORA_PROCESSES") else 3
# before which calls a process may be killed, how many of them a run has, and how many of the three make them
MOMENTS = {
    "a step": (ZeroOrderOptimizer, "step", 8, 3),
    "the weights of a merge": (Booster, "_write", 2, 3),
    "the manifest of a checkpoint": (checkpoint, "seal", 4, 1),
    "a checkpoint": (ProcessTrainer, "gather_random_states", 4, 3),
    "a merge on the tape": (Tape, "record_merge", 2, 3),
    "the files of a checkpoint": (checkpoint, "save", 4, 1),
}


@pytest.fixture(scope="module")
def of_three(train_together, tmp_path_factory):
    """What three processes leave that nothing ends."""
    folder = tmp_path_factory.mktemp("of_three") / "run"
    assert_whole(train_together(3, folder))
    return left_by(folder)


def kill(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def drawn(seed):
    """(the process that is killed, before which call of what): the kinds of moments in turn, the rest at random."""
    chance, moments = random.Random(seed), list(MOMENTS.values())
    owner, name, calls, callers = moments[seed % len(moments)]
    return chance.randrange(callers), owner, name, 1 + chance.randrange(calls)


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_process_that_is_killed_ends_all_in_one_line_and_the_run_goes_on_exactly(
    train_together, of_three, tmp_path, seed
):
    victim, *call = drawn(seed)
    ended = train_together(
        3, tmp_path / "killed", before=lambda number: at_call(*call, kill) if number == victim else None
    )
    assert ended[victim].status == -signal.SIGKILL
    others = [one for number, one in enumerate(ended) if number != victim]
    assert [one.status for one in others] == [1, 1], others
    lines = [line for one in others for line in one.errors if line.startswith("error: ")]
    assert len(lines) == 1, others
    assert lines[0].startswith(f"error: of 3 processes this one is gone: {victim} (pid ")
    assert not any("Traceback" in line for one in others for line in one.errors)
    assert max(one.at for one in others) - ended[victim].at < 60.0
    assert_whole(train_together(3, tmp_path / "killed"))
    assert_same(left_by(tmp_path / "killed"), of_three)
