"""Boosting: when to merge, merging and starting again, the ledger of all boosters."""

from xgblora.boosting.adaptive import AdaptiveMerging, AdaptiveRule
from xgblora.boosting.booster import Booster
from xgblora.boosting.ledger import Ledger, MergedAdapter
from xgblora.boosting.policy import MergePolicy
from xgblora.boosting.starts import RoundStart, Samples
from xgblora.boosting.unboosted import Unboosted

__all__ = [
    "AdaptiveMerging",
    "AdaptiveRule",
    "Booster",
    "Ledger",
    "MergePolicy",
    "MergedAdapter",
    "RoundStart",
    "Samples",
    "Unboosted",
]
