"""Depths: which of a model's blocks hold adapted layers: those of a range, and the first one that does."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
        lists = _lists(model)
        kept = [name for name in names if self._holds(_place(lists, name))]
        if not kept:
            raise InputError(f"xgblora_layers={self}: none of the {len(names)} target layers lies there")
        return kept

    def _holds(self, place: "_Place | None") -> bool:
        return place is not None and self.start <= (place.number + 0.5) / place.count < self.stop


WHOLE = Depths()


def first_block(model: nn.Module, names: Collection[str]) -> str:
    """The name of the first block that holds one of the layers `names`.

    "" where it is the first of all, and where the layers do not lie in the blocks of one list: then nothing is known to
    run before all of them.
    """
    lists = _lists(model)
    places = [_place(lists, name) for name in names]
    if not places or None in places or len({place.blocks for place in places}) > 1:
        return ""
    first = min(places, key=lambda place: place.number)
    return f"{first.blocks}.{first.number}" if first.number else ""


class _Place(NamedTuple):
    """A block: its number in the list called `blocks`, which has `count` of them."""

    blocks: str
    number: int
    count: int


def _lists(model: nn.Module) -> dict[str, int]:
    return {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}


def _place(lists: dict[str, int], name: str) -> _Place | None:
    """The outermost block that the layer `name` is in; None outside of all."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        path = ".".join(parts[:end])
        if path in lists and parts[end].isdigit():
            return _Place(path, int(parts[end]), lists[path])
    return None
