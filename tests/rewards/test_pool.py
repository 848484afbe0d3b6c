"""Rewards in processes: whatever one of them does, the others are told, and so is it."""

import math
import time

import pytest

from xgblora.errors import InputError
from xgblora.rewards import RewardPool, Text, parse_rewards

FILE = """
import os, subprocess, sys, time

def length(prompt, completion, row):
    return len(completion) / row["most"]

def judge(prompt, completion, row):
    print("a reward may print")
    if completion == "raise":
        raise ValueError("two\\nlines")
    if completion == "text":
        return "good"
    if completion == "nothing":
        return None
    if completion == "nan":
        return float("nan")
    if completion == "huge":
        return 10**400
    if completion == "nameless":
        return type("Nameless", (), {"__repr__": lambda self: 1 / 0})()
    if completion == "sleep":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(row["pid"], "w").write(str(child.pid))
        time.sleep(600)
    if completion == "exit":
        sys.exit(3)
    if completion == "kill":
        os.kill(os.getpid(), 9)
    return True
"""
WRONG = {
    "raise": "raised ValueError: two lines",
    "text": "returned 'good', no number",
    "nothing": "returned None, no number",
    "nan": "returned nan",
    "huge": "raised OverflowError: int too large to convert to float",
    "nameless": "raised ZeroDivisionError: division by zero",
    "sleep": "took longer than 2 s",
    "exit": "ended its process (exit status 3)",
    "kill": "ended its process (SIGKILL)",
}


@pytest.fixture
def rewards(tmp_path):
    path = tmp_path / "judge.py"
    path.write_text(FILE)
    return parse_rewards([f"{path}:judge", f"{path}:length"], [2.0, 0.5])


def texts(tmp_path, *completions):
    row = {"most": 10, "pid": str(tmp_path / "pid")}
    return [Text("Q", completion, row, f"rows.jsonl line {i}") for i, completion in enumerate(completions, start=1)]


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_that_fails_is_named_with_its_row_and_the_others_go_on(rewards, tmp_path, caplog):
    completions = ("fine", *WRONG, "well")
    started = time.monotonic()
    with RewardPool(rewards, workers=2, time_limit=2.0) as pool:
        scored = pool.score(texts(tmp_path, *completions))
        assert time.monotonic() - started < 120
        again = pool.score(texts(tmp_path, "fine", "well"))
    assert [one.value for one in (scored[0], scored[-1])] == [2.2, 2.2] == [one.value for one in again]
    assert scored[0].rewards == {"judge": 1.0, "length": 0.4}
    assert not scored[0].failures
    for line, (completion, wrong) in enumerate(WRONG.items(), start=2):
        one = scored[line - 1]
        assert math.isnan(one.value)
        assert math.isnan(one.rewards["judge"])
        assert one.rewards["length"] == len(completion) / 10
        assert one.failures == (f"reward judge of rows.jsonl line {line}: {wrong}",)
        assert f"{one.failures[0]}: counts as failed" in caplog.messages
    pid = int((tmp_path / "pid").read_text())
    time.sleep(0.2)
    assert not is_running(pid), "what it had started is ended with it"


def test_a_failure_may_end_the_run(rewards, tmp_path):
    with (
        RewardPool(rewards, on_failure="stop") as pool,
        pytest.raises(InputError, match=r"^reward judge of rows.jsonl line 2: raised ValueError: two lines$"),
    ):
        pool.score(texts(tmp_path, "fine", "raise", "well"))


@pytest.mark.parametrize(
    ("content", "function", "message"),
    [
        ("def corect(p, c, r): return 1", "correct", r"no function correct in the file; did you mean corect\? \(f"),
        ("import nothing_of_this_name", "correct", "cannot be loaded: No module named"),
        ("raise SystemExit(4)", "correct", r"judge.py:correct: loading it ended its process \(exit status 4\)"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_one_line(tmp_path, content, function, message):
    path = tmp_path / "judge.py"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        RewardPool(parse_rewards([f"{path}:{function}"]))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "reward_workers=0: must be 1 or more"),
        ({"time_limit": 0.0}, "reward_time_limit=0.0: must be a positive finite number"),
        ({"on_failure": "ignore"}, "on_failure=ignore: must be one of count, stop"),
    ],
)
def test_settings_out_of_range_are_one_line(rewards, settings, message):
    with pytest.raises(InputError, match=message):
        RewardPool(rewards, **settings)


def test_its_processes_import_neither_torch_nor_the_program_that_starts_them(tmp_path, python):
    path = tmp_path / "judge.py"
    path.write_text("import sys\ndef light(p, c, r): return 'torch' not in sys.modules\n")
    # no `if __name__ == "__main__"` in it
    program = (
        "from xgblora.rewards import RewardPool, Text, parse_rewards\n"
        f"with RewardPool(parse_rewards(['{path}:light'])) as pool:\n"
        "    print(pool.score([Text('', '', {}, 'row 1')])[0].value)\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    assert python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')") == "1.0\n"
