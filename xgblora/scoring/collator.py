"""From encoded examples to a batch of tensors, padded on the left, with the places of its tokens in a packed grid."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xgblora.scoring.encoding import EncodedExample
from xgblora.scoring.option_rows import MOST_SPARED
from xgblora.scoring.packing import Layout, lay_out, power_of_two

# least T of few shapes: in a packed batch T is the size of an index and costs nothing
FEW_SHAPES_LENGTH = 64


@dataclass(frozen=True)
class Collator:
    """Make a batch of B examples; every tensor has the examples first, so that a batch can be repeated as a whole.

    The batch is a dict of int64 tensors (S sequences an example, T tokens, R rows, C candidates, L option tokens) and
    plain values:

    - `input_ids`, `attention_mask` [B, S, T]: padded on the left. An example with fewer sequences repeats its first.
    - `rows` [B, R]: indices into the example's S * T hidden states that predict an option token.
    - `option_rows`, `option_targets`, `option_mask` [B, C, L]: for each option token its index into `rows`, its id,
      and whether it is there. A candidate without tokens is padding.
    - `label` [B]: index of the right candidate.
    - `cells` [B, S, T]: where the token stands in the packed grid (`xgblora.scoring.packing`), counted row by row; for
      padding, and for a sequence that is there twice, the number of the grid's cells.
    - `slots` [B, R]: the place of each of `rows` among those that the last layer computes in the packed grid, Q in each
      of its rows, counted row by row.
    - `queries`: Q, or 0 where the last layer should compute all positions.
    - `shared` [B]: the tokens of the prefix that the sequences of the example share in the grid.
    - `grid`: (rows, positions a row) of the packed grid.
    - `copies`: how often the batch stands in it, one below the other, and `groups`: how many adapters read it, each an
      equal share of the rows. 1 and 1, unless what repeats a batch says otherwise.
    - `trunk`: the name of the model's first block that treats the copies differently; "", unless what repeats a batch
      says otherwise.

    What remembers hidden states (`xgblora.scoring.trunk_memory`) adds `states` [B, S, T, D] and the name of the block
    that is given them, `states_at`.

    What runs the batch chooses between the padded and the packed form; without `grid` it is a padded batch.

    With `few_shapes` batches that run packed have few different shapes, as CUDA graphs want it: T is a power of
    two, R and L are rounded up, and so are the rows of the grid. It adds 3% to the positions of a batch of SST-2.
    """

    pad_token_id: int
    few_shapes: bool = False

    def __call__(self, examples: list[EncodedExample]) -> dict[str, Tensor | int | tuple[int, int, int]]:
        layout = lay_out(examples, few_shapes=self.few_shapes)
        count, length = len(examples), max(map(len, examples))
        sequences = max(len(example.sequences) for example in examples)
        rows = max(len(example.rows) for example in examples)
        candidates = max(len(example.options) for example in examples)
        tokens = max(len(option) for example in examples for option in example.options)
        if self.few_shapes:
            length, rows, tokens = max(power_of_two(length), FEW_SHAPES_LENGTH), _coarser(rows), _coarser(tokens)
        queries, slots = _slots(examples, layout, rows, self.few_shapes)
        # lists first: writing each example into tensors takes twice as long, 1.2 ms for 16 of SST-2
        ids, mask, cells, wanted, option_rows, targets, there = ([] for _ in range(7))
        for number, example in enumerate(examples):
            for place in range(sequences):
                # attention over a sequence of padding alone would be a softmax over nothing
                text = example.sequences[place if place < len(example.sequences) else 0]
                more = length - len(text)
                ids += [self.pad_token_id] * more + list(text)
                mask += [0] * more + [1] * len(text)
                held = layout.cells(number, place, len(text)) if place < len(example.sequences) else []
                cells += [layout.rows * layout.length] * (length - len(held)) + held
            positions = [(s + 1) * length - len(example.sequences[s]) + i for s, i in example.rows]
            wanted += positions + positions[:1] * (rows - len(positions))
            for option in (*example.options, *[()] * (candidates - len(example.options))):
                more = [0] * (tokens - len(option))
                option_rows += [row for row, _ in option] + more
                targets += [target for _, target in option] + more
                there += [1] * len(option) + more
        texts, options = (count, sequences, length), (count, candidates, tokens)
        return {
            "input_ids": _int64(ids).view(texts),
            "attention_mask": _int64(mask).view(texts),
            "rows": _int64(wanted).view(count, rows),
            "option_rows": _int64(option_rows).view(options),
            "option_targets": _int64(targets).view(options),
            "option_mask": _int64(there).view(options),
            "label": _int64([example.label for example in examples]),
            "cells": _int64(cells).view(texts),
            "slots": _int64(slots).view(count, rows),
            "queries": queries,
            "shared": _int64(layout.shared),
            "grid": (layout.rows, layout.length),
            "copies": 1,
            "groups": 1,
            "trunk": "",
        }


def _slots(examples: list[EncodedExample], layout: Layout, rows: int, few_shapes: bool) -> tuple[int, list[int]]:
    """Q and, of each example, the slots of its `rows` rows; one that fills up has the slot of the first."""
    in_row: list[dict[int, int]] = [{} for _ in range(layout.rows)]
    found = []
    for number, example in enumerate(examples):
        cells = [layout.cell(number, sequence, index) for sequence, index in example.rows]
        of_cells = [(cell // layout.length, cell) for cell in cells]
        taken = [(row, in_row[row].setdefault(cell, len(in_row[row]))) for row, cell in of_cells]
        found += taken + taken[:1] * (rows - len(taken))
    queries = max(map(len, in_row))
    if few_shapes:
        queries = power_of_two(queries)
    if queries > MOST_SPARED * layout.length:
        return 0, [0] * len(found)
    return queries, [row * queries + slot for row, slot in found]


def _int64(numbers: Sequence[int]) -> Tensor:
    # by way of numpy, which reads 800 numbers in 27 us; `torch.tensor` takes 165
    return torch.from_numpy(np.array(numbers, dtype=np.int64))


def _coarser(number: int) -> int:
    """`number` rounded up to a power of two, beyond 16 to a quarter of the way to the next."""
    step = power_of_two(number) // 8 if number > 16 else power_of_two(number)
    return -(-number // step) * step
