"""How a round starts: a file for each strategy, `REINITS` with all of them, and `RoundStart`, what a run does."""

from xgblora.boosting.starts.registry import FIRST_STARTS, REINITS
from xgblora.boosting.starts.round_start import RoundStart, check_share
from xgblora.boosting.starts.strategy import Derived, Measured, Samples

__all__ = ["FIRST_STARTS", "REINITS", "Derived", "Measured", "RoundStart", "Samples", "check_share"]
