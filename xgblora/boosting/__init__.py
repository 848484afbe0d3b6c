"""Boosting: when to merge, merging and starting again, the ledger of all boosters."""

from xgblora.boosting.adaptive import AdaptiveMerging, AdaptiveRule
from xgblora.boosting.booster import Booster
from xgblora.boosting.full_fine_tuning import FullFineTuning
from xgblora.boosting.ledger import Ledger
from xgblora.boosting.merged import MergedAdapter, MergedNoise
from xgblora.boosting.overflow import MergeOverflow
from xgblora.boosting.policy import MergePolicy
from xgblora.boosting.starts import RoundStart, Samples

__all__ = [
    "AdaptiveMerging",
    "AdaptiveRule",
    "Booster",
    "FullFineTuning",
    "Ledger",
    "MergeOverflow",
    "MergePolicy",
    "MergedAdapter",
    "MergedNoise",
    "RoundStart",
    "Samples",
]
