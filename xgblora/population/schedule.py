"""Schedules: functions of the step, 0 for the first, that a `Population` takes for `sigma` and `lr`."""

from collections.abc import Callable


def linear(first: float, last: float, steps: int) -> Callable[[int], float]:
    """From `first` at the first of `steps` steps to `last` at the last of them, and from there on."""

    def at(step: int) -> float:
        share = min(1.0, step / (steps - 1)) if steps > 1 else 0.0
        return (1.0 - share) * first + share * last

    return at
