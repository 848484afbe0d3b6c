"""Several processes, one run: what they leave, what ends them, and how the run goes on.

The run of every test is tiny, and its processes are forked from this one. `XGBLORA_PROCESSES=1` runs the long form: 30
kills instead of 3.
"""

import json
import os
import random
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from tests.fixtures.runs import Run
from xgblora.ops.choice import available, choose
from xgblora.training.zero_order_optimizer import ZeroOrderOptimizer

KILLS = 30 if os.environ.get("XGBLORA_PROCESSES") else 3
FLAGS = (
    "--xgblora_steps_per_iteration=3",
    "--max_steps=8",
    "--save_strategy=steps",
    "--save_steps=2",
    "--eval_steps=4",
    "--num_train=24",
    "--save_model=false",
    "--resume_from_checkpoint=last",
)


@pytest.fixture(scope="session")
def train_together(start_processes, train_tiny):
    """A function `(count, folder, *flags, before, own_flags, **environment)`: how processes of one run ended.

    `before(number)` is called in each process before it trains; `own_flags(number)` are flags of its own.
    """

    def train(count, folder, *flags, before=lambda number: None, own_flags=lambda number: (), **environment):
        def work(number):
            before(number)
            train_tiny(folder, *FLAGS, *flags, *own_flags(number))

        return start_processes(count, work, **environment).ended()

    return train


def at_step(step, act):
    """Let `act()` happen in this process before optimizer step `step`, counted from 1 by the calls."""
    calls, original = [], ZeroOrderOptimizer.step

    def stepping(optimizer, closure=None):
        calls.append(None)
        if len(calls) == step:
            act(optimizer)
        return original(optimizer, closure)

    ZeroOrderOptimizer.step = stepping


def killed(optimizer):
    os.kill(os.getpid(), signal.SIGKILL)


def left_by(folder):
    """What of a run must be the same to the bit: the curve, the tape, the ledger and the arena."""
    run = Run(folder)
    arena = load_file(folder / "checkpoint-8" / "adapters.safetensors")["master"]
    ledger = load_file(folder / "boosters.safetensors")
    return run.losses, (folder / "tape.bin").read_bytes(), arena, ledger


def assert_same(ours, theirs):
    assert ours[:2] == theirs[:2]
    assert torch.equal(ours[2], theirs[2])
    assert ours[3].keys() == theirs[3].keys()
    assert all(torch.equal(tensor, theirs[3][name]) for name, tensor in ours[3].items())


def assert_whole(ended):
    assert [one.status for one in ended] == [0] * len(ended), ended


@pytest.fixture(scope="module")
def of_three(train_together, tmp_path_factory):
    """What three processes leave that nothing ends."""
    folder = tmp_path_factory.mktemp("of_three") / "run"
    assert_whole(train_together(3, folder))
    return left_by(folder)


def test_two_processes_on_other_backends_agree_after_every_step(train_together, tmp_path):
    """Noise, update and merge have the same bits whatever makes them; of what differs all take the first one's."""
    if "host" not in available("update_", "cpu"):
        pytest.skip("the host extension is not built")

    def before(number):
        os.environ["XGBLORA_BACKEND"] = ("eager", "host")[number]
        choose.cache_clear()
        assert choose("update_", "cpu").backend == os.environ["XGBLORA_BACKEND"]

    flags = ("--zo_agree_steps=1", "--xgblora_reinit=data", "--xgblora_colsample=0.5")
    assert_whole(train_together(2, tmp_path / "two", *flags, before=before))
    assert len(Run(tmp_path / "two").entries("merges.jsonl")) == 2
    assert len(Run(tmp_path / "two").losses) == 8


def test_directions_of_two_processes_leave_what_one_leaves(train_together, run_in, tmp_path):
    flags = ("--zo_parallel=directions", "--zo_directions=2", "--zo_pairing=sequential", "--zo_optimizer=adam")
    assert_whole(train_together(2, tmp_path / "two", *flags, "--xgblora_shrinkage=line_search"))
    one = run_in(tmp_path / "one", *FLAGS, *flags, "--xgblora_shrinkage=line_search")
    assert_same(left_by(tmp_path / "two"), left_by(one.folder))


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_process_that_is_killed_ends_all_in_one_line_and_the_run_goes_on_exactly(
    train_together, of_three, tmp_path, kill
):
    drawn = random.Random(kill)
    victim, step = drawn.randrange(3), drawn.randrange(2, 9)
    ended = train_together(
        3, tmp_path / "killed", before=lambda number: at_step(step, killed) if number == victim else None
    )
    assert ended[victim].status == -signal.SIGKILL
    others = [one for number, one in enumerate(ended) if number != victim]
    assert [one.status for one in others] == [1, 1], others
    lines = [line for one in others for line in one.errors if line.startswith("error: ")]
    assert len(lines) == 1, others
    assert lines[0].startswith(f"error: of 3 processes this one is gone: {victim} (pid ")
    assert not any("Traceback" in line for one in others for line in one.errors)
    assert_whole(train_together(3, tmp_path / "killed"))
    assert_same(left_by(tmp_path / "killed"), of_three)


def test_a_process_that_has_trained_something_else_is_named_with_the_step(train_together, tmp_path):
    def changed(optimizer):
        optimizer.param_groups[0]["params"][0].data.add_(1e-6)

    ended = train_together(
        3,
        tmp_path / "run",
        "--zo_agree_steps=1",
        "--save_steps=4",
        before=lambda number: at_step(2, changed) if number == 1 else None,
    )
    assert [one.status for one in ended] == [1, 1, 1]
    (line,) = [line for one in ended for line in one.errors if line.startswith("error: ")]
    assert line.startswith("error: step 2: what process 1 (")


@pytest.mark.parametrize(
    ("own", "line"),
    [
        (lambda number: (f"--seed={number}",), "error: "),
        (lambda number: ("--zo_eps=-1",) if number else (), "error: process 1: zo_eps=-1.0: must be"),
        (lambda number: (f"--zo_eps=0.0{number + 1}",), "error: zo_eps: is 0.02 in process 1 and 0.01 in process 0"),
    ],
)
def test_processes_with_other_flags_end_together_in_one_line(train_together, tmp_path, own, line):
    ended = train_together(2, tmp_path / "run", own_flags=own)
    assert [one.status for one in ended] == [2, 2], ended
    assert [said for said in ended[0].errors if said.startswith(line)], ended[0].errors
    assert not [said for said in ended[1].errors if said.startswith("error")]
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_a_third_process_that_has_the_base_alone_joins_and_leaves_what_three_do_that_have_all(train_together, tmp_path):
    for name in ("one", "other"):
        assert_whole(train_together(2, tmp_path / name, "--max_steps=4"))
    assert_whole(train_together(3, tmp_path / "one"))
    elsewhere = tmp_path / "elsewhere"
    own_flags = lambda number: (f"--output_dir={elsewhere}",) if number == 2 else ()  # noqa: E731
    assert_whole(train_together(3, tmp_path / "other", own_flags=own_flags))
    assert_same(left_by(tmp_path / "one"), left_by(tmp_path / "other"))
    assert not elsewhere.exists()


def test_backpropagation_averages_the_gradients(train_together, run_in, tiny_model_folder, tmp_path):
    """DDP over the adapters: two processes with half of a batch each train what one with the whole of it does."""
    model = shutil.copytree(tiny_model_folder, tmp_path / "model")
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    # of which each process drops out other things
    (model / "config.json").write_text(json.dumps({**settings, "dropout": 0.0}), encoding="utf-8")
    # steps that are as long as the gradients, so that rounding stays what it is
    flags = ("--trainer=regular", "--optim=sgd", "--learning_rate=0.1", f"--model_name={model}")
    assert_whole(train_together(2, tmp_path / "two", *flags, "--per_device_train_batch_size=2"))
    run_in(tmp_path / "one", *FLAGS, *flags)
    arenas = [load_file(tmp_path / name / "checkpoint-8" / "adapters.safetensors")["master"] for name in ("one", "two")]
    assert torch.allclose(*arenas, rtol=1e-4, atol=1e-6)
