"""scripts/trial_cost.py: CPU time of what is called."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fixtures.files import imported

PATH = Path(__file__).parents[2] / "scripts" / "trial_cost.py"


def test_calls_are_timed_one_by_one_and_give_and_raise_what_they_did():
    with imported(PATH) as script:
        owner = SimpleNamespace(divide=lambda one, *, by: one / by)
        script.timed(owner, "divide", "division")
        assert owner.divide(6, by=3) == 2
        with pytest.raises(ZeroDivisionError):
            owner.divide(1, by=0)
        assert len(script.SPENT["division"]) == 2
        # whatever it times must be there
        for owner, name in (
            (script.OptionScorer, "_try"),
            (script._Forwards, "_tried"),
            (script.ZeroOrder, "_stacks_right"),
        ):
            assert callable(getattr(owner, name))
