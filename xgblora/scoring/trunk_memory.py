"""The trunk remembered: hidden states of texts at a block below which nothing changes, each computed once.

A text is computed together with others of like length that are always the same ones, whichever is asked for first: its
states have the same bits in a run and in its resumption, which asks in another order.

What memory has no room for lies in a file that is mapped into it. The file loses its name as soon as it is open, so
that it goes with the process, however that ends.
"""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from xgblora.errors import InputError
from xgblora.eval_mode import in_eval_mode
from xgblora.scoring.batches import batches_by_length
from xgblora.scoring.encoding import EncodedExample
from xgblora.scoring.option_scorer import OptionScorer
from xgblora.spelling import one_line

Texts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Place:
    """Where the states of an example are.

    Attributes:
        batch: the number of the batch in which it is computed.
        start: the first of its rows in the store.
        lengths: the tokens of each of its sequences, which come one after the other.
    """

    batch: int
    start: int
    lengths: tuple[int, ...]


class TrunkMemory:
    """The hidden states of the examples of some sets.

    Args:
        sets: all examples that may be asked for, those first that are to be in memory first.
        compute: the states of some examples, [tokens, D] each: its sequences one after the other.
        tokens: the most tokens of a batch that is computed at once.
        room: bytes in memory; what does not fit lies in a file.
        folder: where that file is; it is made when it is needed.

    Attributes:
        numbers: of the examples, by their sequences; those that have the same ones are one.
        in_memory, in_file: bytes, once all is computed.
    """

    def __init__(
        self,
        sets: Iterable[Sequence[EncodedExample]],
        compute: Callable[[list[EncodedExample]], list[Tensor]],
        *,
        tokens: int,
        room: int,
        folder: Path,
    ):
        self._compute, self._folder = compute, folder
        self.numbers: dict[Texts, int] = {}
        self._batches: list[list[EncodedExample]] = []
        self._places: list[_Place] = []
        ends = [0]
        for examples in sets:
            new = {example.sequences: example for example in examples if example.sequences not in self.numbers}
            for batch in batches_by_length(new.values(), len, tokens=tokens):
                ends.append(self._lay_out(batch, ends[-1]))
        (shortest,) = compute([min((batch[-1] for batch in self._batches), key=len)])
        self._width, self._dtype = shortest.shape[1], shortest.dtype
        row = self._width * self._dtype.itemsize
        # the rows in memory, which are those of whole batches
        self._split = max(end for end in ends if end * row <= room)
        self.in_memory, self.in_file = self._split * row, (ends[-1] - self._split) * row
        self.forget()

    def _lay_out(self, batch: list[EncodedExample], start: int) -> int:
        """Give the examples of a batch their places from row `start` on; the row after the last."""
        for example in batch:
            lengths = tuple(map(len, example.sequences))
            self.numbers[example.sequences] = len(self._places)
            self._places.append(_Place(len(self._batches), start, lengths))
            start += sum(lengths)
        self._batches.append(batch)
        return start

    def forget(self) -> None:
        """Give memory and file back; what is asked for then is computed again."""
        self._filled: set[int] = set()
        self._memory: Tensor | None = None
        self._file: Tensor | None = None

    def states(self, numbers: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
        """The states of B examples, in the places that a batch of that `shape` has for their tokens.

        Args:
            numbers: of the examples.
            shape: (B, S, T) of the batch's `input_ids`: padded on the left, the first sequence where there are fewer.

        Returns:
            [B, S, T, D] on the host, zero for padding.
        """
        states = torch.zeros(*shape, self._width, dtype=self._dtype)
        for of_example, number in zip(states, numbers, strict=True):
            place = self._places[number]
            self._fill(place.batch)
            starts = list(itertools.accumulate(place.lengths, initial=place.start))
            for row, of_sequence in enumerate(of_example):
                sequence = row if row < len(place.lengths) else 0
                length = place.lengths[sequence]
                of_sequence[shape[2] - length :] = self._rows(starts[sequence], length)
        return states

    def _fill(self, number: int) -> None:
        if number in self._filled:
            return
        batch = self._batches[number]
        for example, states in zip(batch, self._compute(batch), strict=True):
            self._rows(self._places[self.numbers[example.sequences]].start, len(states)).copy_(states)
        self._filled.add(number)

    def _rows(self, start: int, count: int) -> Tensor:
        """A view of so many rows, all of them in memory or all in the file."""
        if start < self._split:
            if self._memory is None:
                self._memory = torch.empty(self._split, self._width, dtype=self._dtype)
            return self._memory[start : start + count]
        if self._file is None:
            self._file = _mapped(self._folder, self.in_file).view(self._dtype).view(-1, self._width)
        return self._file[start - self._split : start - self._split + count]


def states_by(
    scorer: OptionScorer, model: nn.Module, first: str, collate: Callable[[list[EncodedExample]], dict]
) -> Callable[[list[EncodedExample]], list[Tensor]]:
    """What computes states for a `TrunkMemory`: those that the block called `first` of `model` is given."""
    device = next(model.parameters()).device

    @torch.no_grad()
    def compute(examples: list[EncodedExample]) -> list[Tensor]:
        batch = collate(examples)
        batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        with in_eval_mode(model):
            states = scorer.states(model, batch, first).cpu()
        length = states.shape[2]
        return [
            torch.cat([states[number, row, length - len(ids) :] for row, ids in enumerate(example.sequences)])
            for number, example in enumerate(examples)
        ]

    return compute


def _mapped(folder: Path, size: int) -> Tensor:
    """uint8 [size] in a file of `folder` without a name; it goes with the tensor."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix="trunk-") as file:
            if hasattr(os, "posix_fallocate"):
                # now, and not when a page is written that the disk has no room for
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,)))
    except OSError as error:
        raise InputError(
            f"trunk_cache_gb: the {size:,} bytes beyond it do not fit into {folder} ({one_line(error)}); give another "
            "output_dir, or 0 to remember nothing"
        ) from None
