"""From encoded examples to a batch of tensors, padded on the left, with the places of its tokens in a packed grid."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xgblora.tasks.encoding import EncodedExample
from xgblora.tasks.packing import Layout, lay_out


@dataclass(frozen=True)
class Collator:
    """Make a batch of B examples; every tensor has the examples first, so that a batch can be repeated as a whole.

    The batch is a dict of int64 tensors (S sequences an example, T tokens, R rows, C candidates, L option tokens) and
    one tuple:

    - `input_ids`, `attention_mask` [B, S, T]: padded on the left. An example with fewer sequences repeats its first.
    - `rows` [B, R]: indices into the example's S * T hidden states that predict an option token.
    - `option_rows`, `option_targets`, `option_mask` [B, C, L]: for each option token its index into `rows`, its id,
      and whether it is there. A candidate without tokens is padding.
    - `label` [B]: index of the right candidate.
    - `cells` [B, S, T]: where the token stands in the packed grid (`xgblora.tasks.packing`), counted row by row; for
      padding, and for a sequence that is there twice, the number of the grid's cells.
    - `shared` [B]: the tokens at the beginning that the sequences of the example share in the grid.
    - `grid`: (examples, rows, positions a row) of the packed grid.

    What runs the batch chooses between the padded and the packed form; without `grid` it is a padded batch.
    """

    pad_token_id: int

    def __call__(self, examples: list[EncodedExample]) -> dict[str, Tensor | tuple[int, int, int]]:
        length = max(len(example) for example in examples)
        sequences = max(len(example.sequences) for example in examples)
        rows = max(len(example.rows) for example in examples)
        candidates = max(len(example.options) for example in examples)
        tokens = max(len(option) for example in examples for option in example.options)
        count = len(examples)
        layout = lay_out(examples)
        batch = {
            "input_ids": torch.full((count, sequences, length), self.pad_token_id),
            "attention_mask": torch.zeros(count, sequences, length, dtype=torch.int64),
            "rows": torch.zeros(count, rows, dtype=torch.int64),
            "option_rows": torch.zeros(count, candidates, tokens, dtype=torch.int64),
            "option_targets": torch.zeros(count, candidates, tokens, dtype=torch.int64),
            "option_mask": torch.zeros(count, candidates, tokens, dtype=torch.int64),
            "label": torch.tensor([example.label for example in examples]),
            "cells": torch.full((count, sequences, length), layout.rows * layout.length),
            "shared": torch.tensor(layout.shared),
            "grid": (count, layout.rows, layout.length),
        }
        for index, example in enumerate(examples):
            self._fill(batch, index, example, layout)
        return batch

    def _fill(self, batch: dict, index: int, example: EncodedExample, layout: Layout) -> None:
        length = batch["input_ids"].shape[2]
        for place in range(batch["input_ids"].shape[1]):
            # attention over a sequence of padding alone would be a softmax over nothing
            ids = example.sequences[place] if place < len(example.sequences) else example.sequences[0]
            batch["input_ids"][index, place, length - len(ids) :] = torch.tensor(ids)
            batch["attention_mask"][index, place, length - len(ids) :] = 1
        for place, ids in enumerate(example.sequences):
            cells = torch.tensor(layout.cells(index, place, len(ids)))
            batch["cells"][index, place, length - len(ids) :] = cells
        positions = [s * length + length - len(example.sequences[s]) + i for s, i in example.rows]
        positions += positions[:1] * (batch["rows"].shape[1] - len(positions))
        batch["rows"][index] = torch.tensor(positions)
        for candidate, option in enumerate(example.options):
            rows, targets = zip(*option, strict=True)
            batch["option_rows"][index, candidate, : len(option)] = torch.tensor(rows)
            batch["option_targets"][index, candidate, : len(option)] = torch.tensor(targets)
            batch["option_mask"][index, candidate, : len(option)] = 1
