"""Early stopping over rounds, as XGBoost's `early_stopping_rounds` (Chen and Guestrin, 2016)."""

import math
from collections.abc import Sequence

from xgblora.boosting.merged import MergedAdapter


def best_of(boosters: Sequence[MergedAdapter]) -> MergedAdapter | None:
    """The round with the lowest held-out loss, of equal ones the first; None if none was measured and finite."""
    known = [booster for booster in boosters if booster.held_out_loss is not None]
    return min((b for b in known if math.isfinite(b.held_out_loss)), key=lambda b: b.held_out_loss, default=None)


def has_stalled(boosters: Sequence[MergedAdapter], rounds: int) -> bool:
    """Whether the last `rounds` rounds that were measured, or more, are no better than the best before them.

    Args:
        boosters: all rounds so far.
        rounds: 1 or more; 0 for never.
    """
    best = best_of(boosters)
    measured = [booster for booster in boosters if booster.held_out_loss is not None]
    since = [booster for booster in measured if best is None or booster.round > best.round]
    return 0 < rounds <= len(since)
