"""Runs that were left alone, to compare resumed ones with."""

import pytest

from tests.records.resumed_runs import CASES, SAVING


@pytest.fixture(scope="session")
def whole(run):
    """A function that gives the uninterrupted run of a case: 16 steps, a checkpoint at step 10."""
    return lambda case: run(*CASES[case], *SAVING, "--max_steps=16")
