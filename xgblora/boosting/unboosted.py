"""`Unboosted`: what stands in a `Booster`'s place where there are no rounds, no merges and no ledger file."""

from pathlib import Path

from xgblora.adapters import FullParameters, Origin
from xgblora.boosting.ledger import Ledger
from xgblora.tape import Tape


class Unboosted:
    """Full-parameter training as the trainer, checkpoints and the tape see it.

    Args:
        adapters: what is trained, not trained yet.

    Attributes:
        adapters: likewise.
        ledger: of no boosters; its origin says which model this was.
        rounding: "none", there are no merges.
        tape: where the end of training is recorded, None unless `start_tape` began one.
    """

    rounding = "none"

    def __init__(self, adapters: FullParameters):
        self.adapters = adapters
        self.ledger = Ledger(Origin.of(adapters), (), self.rounding)
        self.tape: Tape | None = None

    def is_trained(self) -> bool:
        """No: nothing stands beside the weights that has still to be merged into them."""
        return False

    def end(self) -> None:
        """Nothing: the weights are what was trained."""

    def save_ledger(self, path: Path, *, about: dict | None = None) -> None:
        """Nothing: the trained weights themselves are the result."""

    def load_ledger(self, path: Path) -> None:
        """Nothing: a checkpoint holds the trained weights."""
