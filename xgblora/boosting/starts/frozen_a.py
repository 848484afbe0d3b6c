"""`frozen_a`: LoRA-FA (Zhang et al., 2023, arXiv:2308.03303), with another `a` every round."""

from xgblora.boosting.starts.kaiming import kaiming
from xgblora.boosting.starts.strategy import Derived

FROZEN_A = Derived(kaiming, trains_a=False)
