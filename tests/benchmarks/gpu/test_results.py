"""The results file: what is kept of a failure, and what counts as one."""

import json

import pytest

from benchmarks.gpu.results import (
    FAILED,
    HUNG,
    PARTIAL,
    PASSED,
    RUNNING,
    SKIPPED,
    PartResult,
    Results,
    StageResult,
    ends_of,
)
from benchmarks.gpu.stages import STAGES


def stage_of(*states: str) -> StageResult:
    stage = StageResult.waiting(STAGES[0])
    stage.state = RUNNING
    stage.parts = [PartResult(f"part {index}", state) for index, state in enumerate(states)]
    stage.close(1.234)
    return stage


def test_the_first_and_last_forty_lines_are_kept_none_twice():
    lines = [f"line {index}" for index in range(200)]
    kept = ends_of("\n".join(lines))
    assert kept == {"first": lines[:40], "last": lines[-40:]}
    assert ends_of("\n".join(lines[:60])) == {"first": lines[:40], "last": lines[40:60]}
    assert ends_of("one") == {"first": ["one"], "last": []}
    assert ends_of("x" * 1000)["first"] == ["x" * 400]


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ((PASSED, PASSED), PASSED),
        ((PASSED, SKIPPED), PASSED),
        ((SKIPPED, SKIPPED), SKIPPED),
        ((PASSED, FAILED), FAILED),
        ((HUNG, PASSED), FAILED),
    ],
)
def test_a_stage_is_what_its_parts_are(states, state):
    assert stage_of(*states).state == state


def test_parts_that_were_left_out_are_named():
    assert stage_of(PASSED, SKIPPED).reason == "skipped: part 1"


@pytest.mark.parametrize(
    ("states", "green"), [((PASSED,), True), ((PASSED, FAILED), False), ((SKIPPED,), False), ((PASSED, SKIPPED), True)]
)
def test_a_run_is_green_if_something_passed_and_nothing_failed(tmp_path, states, green):
    results = Results(tmp_path / "r.json", {}, [stage_of(state) for state in states])
    assert results.is_green is green


def test_parts_that_were_announced_and_not_reached_are_named_and_the_stage_is_not_passed():
    stage = StageResult.waiting(STAGES[0])
    stage.state, stage.parts = RUNNING, [PartResult("one", PASSED)]
    stage.close(1.0, ["one", "two"])
    assert (stage.state, stage.reason) == (PARTIAL, "skipped: two")
    assert (stage.parts[1].state, stage.parts[1].reason) == (SKIPPED, "not reached")


def test_a_run_of_one_stage_keeps_the_others_of_an_earlier_file(tmp_path):
    earlier = Results(tmp_path / "r.json", {}, [StageResult.waiting(stage) for stage in STAGES])
    for stage in (earlier.stages[0], earlier.stages[2]):
        stage.state, stage.parts = RUNNING, [PartResult("one", PASSED)]
        stage.close(1.0)
    earlier.stages[3].state = RUNNING
    earlier.write()
    again = Results(earlier.path, {}, [StageResult.waiting(STAGES[1])])
    again.keep(json.loads(earlier.path.read_text()))
    assert [(stage.name, stage.state) for stage in again.stages] == [
        (STAGES[0].name, PASSED),
        (STAGES[1].name, "waiting"),
        (STAGES[2].name, PASSED),
    ]
    assert again.stages[0].parts == earlier.stages[0].parts


def test_a_part_keeps_its_output_only_if_it_is_red():
    passed, hung = PartResult("one"), PartResult("two")
    passed.end(PASSED, 1.0, output="much")
    hung.end(HUNG, 1.0, "why", output="much")
    assert passed.output is None
    assert hung.output == {"first": ["much"], "last": []}


def test_the_file_has_the_facts_and_every_stage(tmp_path):
    results = Results(tmp_path / "new" / "r.json", {"minutes": 8.0}, [StageResult.waiting(stage) for stage in STAGES])
    results.write()
    read = json.loads(results.path.read_text())
    assert (read["format"], read["minutes"]) == (1, 8.0)
    assert [(stage["name"], stage["state"]) for stage in read["stages"]] == [(one.name, "waiting") for one in STAGES]
