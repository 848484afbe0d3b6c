"""`FullFineTuning`: what stands in a `Booster`'s place where there are no rounds, no merges and no ledger file."""

from pathlib import Path

from xgblora.adapters import FullParameters
from xgblora.boosting.starts import RoundStart
from xgblora.tape import Tape


class FullFineTuning:
    """Full-parameter training as the trainer, checkpoints and the tape see it.

    Args:
        adapters: what is trained, not trained yet.

    Attributes:
        adapters: likewise.
        boosters, measured_starts: none.
        rounding: "none", there are no merges.
        start: of rounds, of which there are none.
        awaits_start: never.
        tape: where the end of training is recorded, None unless `start_tape` began one.
    """

    boosters = measured_starts = ()
    rounding = "none"
    awaits_start = False
    start = RoundStart()

    def __init__(self, adapters: FullParameters):
        self.adapters = adapters
        adapters.identify()
        self.tape: Tape | None = None

    def begin(self) -> None:
        """Nothing: no round has a start."""

    def is_trained(self) -> bool:
        """No: nothing stands beside the weights that has still to be merged into them."""
        return False

    def record_held_out_loss(self, step: int, loss: float) -> None:
        """Nothing: there is no booster that it could be of."""

    def end(self) -> None:
        """Nothing: the weights are what was trained."""

    def save_ledger(self, path: Path, *, about: dict | None = None) -> None:
        """Nothing: the trained weights themselves are the result."""

    def load_ledger(self, path: Path) -> None:
        """Nothing: a checkpoint holds the trained weights."""
