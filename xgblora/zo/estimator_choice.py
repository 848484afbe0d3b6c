"""Which estimator a zeroth-order step has: one of the caller's own, or a two-sided or one-sided one by its numbers."""

from xgblora.errors import InputError
from xgblora.zo.estimator import Estimator
from xgblora.zo.one_sided import OneSided, check_normalise
from xgblora.zo.two_sided import TwoSided


def chosen_estimator(estimator: Estimator | None, directions: int, two_sided: bool, normalise: bool) -> Estimator:
    """The estimator of a step: one of the caller's own, or the one that the numbers describe.

    Raises:
        InputError: both are given, or the numbers do not go together.
    """
    if estimator is not None:
        if (directions, two_sided, normalise) != (1, True, False):
            raise InputError(f"estimator={estimator.name}: decides directions, two_sided and normalise; leave them out")
        return estimator
    check_normalise("normalise", normalise, two_sided, directions)
    return TwoSided(directions) if two_sided else OneSided(directions, normalise)
