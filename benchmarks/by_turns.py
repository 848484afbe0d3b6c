"""Several ways of doing one thing by turns: each once makes a round, so that all see the same state of the machine."""

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
import torch

from xgblora.zo.step_graphs import SEEN_BEFORE_RECORDING

Way = TypeVar("Way", bound=Hashable)


def seconds_by_turns(ways: Mapping[Way, Callable[[], float]], rounds: int) -> dict[Way, list[float]]:
    """What each way gives in each round: the seconds that it takes."""
    taken: dict[Way, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, seconds in ways.items():
            taken[way].append(seconds())
    return taken


def ratios(taken: Mapping[str, list[float]], ours: str) -> dict[str, float]:
    """The seconds of `ours` over those of every other way: the median of the ratios within rounds.

    Within a round a machine is as fast for one as for the other: of nine rounds on a machine that others use, the ratio
    of the medians let a step through that was slowed down by 30%.
    """
    return {way: float(np.median(np.divide(taken[ours], taken[way]))) for way in taken if way != ours}


def warm_up(way: Callable[[], object], device: torch.device) -> None:
    """Call a way before it is timed; on a GPU as often as a zeroth-order step takes to be captured."""
    for _ in range(SEEN_BEFORE_RECORDING + 2 if device.type == "cuda" else 1):
        way()
