"""All strategies by name. A new one is a file beside this one and its line here."""

from xgblora.boosting.starts.data import DATA
from xgblora.boosting.starts.frozen_a import FROZEN_A
from xgblora.boosting.starts.kaiming import KAIMING
from xgblora.boosting.starts.keep_a import KEEP_A
from xgblora.boosting.starts.orthogonal import ORTHOGONAL
from xgblora.boosting.starts.residual import RESIDUAL
from xgblora.boosting.starts.strategy import Derived, Measured
from xgblora.boosting.starts.warm import WARM

REINITS: dict[str, Derived | Measured] = {
    "kaiming": KAIMING,
    "keep_a": KEEP_A,
    "orthogonal": ORTHOGONAL,
    "frozen_a": FROZEN_A,
    "warm": WARM,
    "data": DATA,
    "residual": RESIDUAL,
}

# what an adapter that is the only one may start as: plain LoRA's
FIRST_STARTS = ("kaiming", *(name for name, strategy in REINITS.items() if isinstance(strategy, Measured)))
