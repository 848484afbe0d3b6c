"""Early stopping over rounds: which round is the best, and when to give up on a better one."""

import math

import pytest
import torch

from xgblora.boosting import MergedAdapter
from xgblora.boosting.early_stopping import best_of, has_stalled


def boosters(losses: list[float | None]) -> list[MergedAdapter]:
    return [
        MergedAdapter(round, round, 0.0, 1.0, torch.zeros(1), held_out_loss=loss)
        for round, loss in enumerate(losses, start=1)
    ]


@pytest.mark.parametrize(
    ("losses", "best", "since"),
    [
        ([], None, 0),
        ([3.0], 1, 0),
        ([3.0, 2.0, 2.0, 4.0], 2, 2),
        ([3.0, 2.0, 4.0, 1.0], 4, 0),
        ([math.nan, math.inf], None, 2),
        ([3.0, math.nan, -math.inf], 1, 2),
        # not measured: before a resumption that brought the flag, or not yet
        ([None, None, 3.0, 4.0, None], 3, 1),
    ],
)
def test_rounds_since_the_best(losses, best, since):
    rounds = boosters(losses)
    assert getattr(best_of(rounds), "round", None) == best
    assert [has_stalled(rounds, patience) for patience in range(1, 4)] == [patience <= since for patience in (1, 2, 3)]
    assert not has_stalled(rounds, 0)
