"""A range of depths: the share of a model's blocks whose layers are adapted."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from xgblora.errors import InputError


@dataclass(frozen=True)
class Depths:
    """From `start` to `stop`, of which 0 is the input of the first block and 1 the output of the last.

    Raises:
        InputError: it is empty or reaches outside of the model.
    """

    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self):
        if not 0.0 <= self.start < self.stop <= 1.0:
            raise InputError(f"xgblora_layers={self}: must be START:STOP with 0 <= START < STOP <= 1, such as 0.5:1.0")

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    @classmethod
    def parse(cls, text: str) -> "Depths":
        """What `START:STOP` says.

        Raises:
            InputError: it is something else, or no range.
        """
        try:
            start, stop = map(float, text.split(":"))
        except ValueError:
            raise InputError(f"xgblora_layers={text}: must be START:STOP, such as 0.5:1.0 for the upper half") from None
        return cls(start, stop)

    def within(self, model: nn.Module, names: Sequence[str]) -> list[str]:
        """Of the layers `names` those of blocks whose middle lies in the range; layers outside of all blocks stay out.

        Blocks that stand in several lists (an encoder's, a decoder's) are counted in each for itself. The whole range
        takes all layers.

        Raises:
            InputError: none is left.
        """
        if self == WHOLE:
            return list(names)
        lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
        kept = [name for name in names if self._holds(_place(lists, name))]
        if not kept:
            raise InputError(f"xgblora_layers={self}: none of the {len(names)} target layers lies there")
        return kept

    def _holds(self, place: tuple[int, int] | None) -> bool:
        return place is not None and self.start <= (place[0] + 0.5) / place[1] < self.stop


WHOLE = Depths()


def _place(lists: dict[str, int], name: str) -> tuple[int, int] | None:
    """The number of the outermost block that the layer `name` is in, and how many blocks there are."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        path = ".".join(parts[:end])
        if path in lists and parts[end].isdigit():
            return int(parts[end]), lists[path]
    return None
