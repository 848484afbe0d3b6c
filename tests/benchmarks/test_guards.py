"""The guards: which benchmarks they hold for, and that a slower one fails."""

import pytest
import torch

from benchmarks import guards
from benchmarks.guards import Guard

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
STEP = "test_step_against_floor_and_mezo[small-float32]"


@pytest.fixture
def one_guard(monkeypatch):
    monkeypatch.setattr(guards, "guards", lambda: (Guard("test_step*[small-*]", "cpu", "ours_over_floor", 1.2),))


def test_a_step_that_is_a_third_slower_fails(one_guard):
    guards.check(STEP, {"ours_over_floor": 1.02}, CPU)
    with pytest.raises(AssertionError, match=r"ours_over_floor is 1\.326, over the 1\.2 of benchmarks/guards\.toml"):
        guards.check(STEP, {"ours_over_floor": 1.02 * 1.3}, CPU)


def test_other_cases_and_devices_pass(one_guard):
    guards.check("test_step_against_floor_and_mezo[opt-125m-float32]", {"ours_over_floor": 9.0}, CPU)
    guards.check(STEP, {"ours_over_floor": 9.0}, CUDA)


def test_every_guard_of_the_file_names_a_ratio_and_a_device():
    assert guards.guards()
    for guard in guards.guards():
        assert guard.device in ("cpu", "cuda") and guard.ratio.startswith("ours_over_") and guard.at_most > 0
