"""scripts/equal_seconds.py: who has got how far in the same time, and what is then measured."""

import importlib
from pathlib import Path

import pytest

from tests.fixtures.files import imported

PATH = Path(__file__).parents[2] / "scripts" / "equal_seconds.py"


@pytest.fixture(scope="module")
def script():
    with imported(PATH) as module:
        yield module


def test_what_follows_two_dashes_are_flags_of_the_task(script):
    arguments, flags = script.parsed(["runs", "--timed", "a.json", "--output", "b.json", "--", "--num_dev", "5"])
    assert (str(arguments.runs), str(arguments.output), flags) == ("runs", "b.json", ["--num_dev", "5"])
    assert script.parsed(["runs", "--timed", "a.json", "--output", "b.json"])[1] == []


def test_what_a_step_costs_is_the_least_that_it_took(script):
    runs = [("fast", 10.0), ("slow", 1.0), ("fast", 20.0), ("slow", 0.5)]
    timed = {"runs": [{"method": name, "measured": {"steps_per_second": pace}} for name, pace in runs]}
    assert (script.seconds_a_step(timed, "fast"), script.seconds_a_step(timed, "slow")) == (0.05, 1.0)


def test_the_fastest_does_all_of_its_steps(script):
    assert script.steps_reached({"fast": 0.1, "slow": 0.25}, 2000) == {"fast": 2000, "slow": 800}


def test_what_a_run_had_learned_by_its_last_step_is_what_it_measured(script, run_in, tiny_flags, tmp_path, monkeypatch):
    """The commands run in this process."""

    def command(name, *words):
        importlib.import_module(f"xgblora.cli.{name}").main([*map(str, words)])

    monkeypatch.setattr(script, "command", command)
    run = run_in(tmp_path / "run", "--max_steps=4", "--xgblora_steps_per_iteration=2")
    task = [flag for flag in tiny_flags if flag.startswith(("--data_dir", "--dtype", "--num_", "--use_cpu"))]
    assert script.held_out(run.folder, 3, 4, task) == run.metrics["results"]["trained"]["eval"]
    assert script.held_out(run.folder, 3, 1, task) != run.metrics["results"]["trained"]["eval"]
