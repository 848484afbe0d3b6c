"""Packing: the sequences of a batch side by side in a grid of few rows, with a mask that keeps them apart.

A batch of 16 of SST-2's training sentences padded to its longest has 2.5 positions for each token; packed it has 1.05.
Every sequence keeps its positions, and attends to its own tokens alone. Sequences of one example with a shared prefix
(candidates of several tokens after one prompt) share the tokens of their prefix, as branches of a tree do (SpecInfer
verifies guesses so, Miao et al. 2024, arXiv:2305.09781).

A grid of one row wastes nothing, but every token is then compared with all others; more rows are shorter and leave
corners empty. The layout weighs one against the other.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from xgblora.scoring.encoding import EncodedExample

# A position costs as much as its comparison with this many others: measured 3,000 for OPT-125m on one core, where
# 1 x 384 positions take 1.11 of the time of 8 x 48; by their FLOP it is 6 times the width of the model.
POSITION_IN_COMPARISONS = 2048
# fewer different shapes, and rows of a mask that begin where a GPU likes them; costs 1.5% of the positions (8: 3%)
LENGTH_MULTIPLE = 4
# of the lengths where a shape is captured once and used often; beyond 256, a sixteenth of the next power of two.
# 1,000 batches of 16 of SST-2 have 39 grids of 1.051 positions a token then, and 95 of 1.025 with multiples of 4
COARSE_MULTIPLE = 16


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch stand in a grid.

    Attributes:
        rows: R, of the grid.
        length: L, positions of a row.
        shared: for each example the tokens of the prefix that all its sequences share in the grid.
        starts: for each example and each of its sequences the cell of the first token beyond the shared ones.
        shared_starts: for each example the cell of the first shared token.
    """

    rows: int
    length: int
    shared: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    shared_starts: tuple[int, ...]

    def cells(self, example: int, sequence: int, tokens: int) -> list[int]:
        """The cells of the first `tokens` tokens of a sequence: row times L plus column."""
        shared = min(self.shared[example], tokens)
        trunk, branch = self.shared_starts[example], self.starts[example][sequence]
        return [*range(trunk, trunk + shared), *range(branch, branch + tokens - shared)]

    def cell(self, example: int, sequence: int, index: int) -> int:
        """The cell of one token of a sequence."""
        beyond = index - self.shared[example]
        return self.starts[example][sequence] + beyond if beyond >= 0 else self.shared_starts[example] + index


def lay_out(examples: Sequence[EncodedExample], *, few_shapes: bool = False) -> Layout:
    """The cheapest of the layouts that fill rows longest piece first, each piece into the emptiest row.

    A piece is what must stand in one row: a sequence, or the sequences of an example that share a prefix.

    Args:
        examples: of the batch.
        few_shapes: round the length of the rows up further, so that many batches have few different grids.
    """
    shared = tuple(map(common_prefix, examples))
    # (tokens, example, first sequence, sequences)
    pieces = [piece for number, example in enumerate(examples) for piece in _pieces_of(number, example, shared[number])]
    pieces.sort(key=lambda piece: -piece[0])
    rows, length, firsts = _cheapest_grid([piece[0] for piece in pieces], few_shapes)
    starts = [[0] * len(example.sequences) for example in examples]
    shared_starts = [0] * len(examples)
    for (_, number, sequence, count), start in zip(pieces, firsts, strict=True):
        shared_starts[number] = start
        start += shared[number]
        for branch in range(sequence, sequence + count):
            starts[number][branch] = start
            start += len(examples[number].sequences[branch]) - shared[number]
    return Layout(rows, length, shared, tuple(map(tuple, starts)), tuple(shared_starts))


def common_prefix(example: EncodedExample) -> int:
    """How many tokens all sequences of an example begin with alike; 0 where there is one sequence."""
    if len(example.sequences) == 1:
        return 0
    return common_length(min(example.sequences), max(example.sequences))


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()


def keeps_apart(examples: Tensor, branches: Tensor) -> Tensor:
    """The attention mask of a packed grid.

    Args:
        examples: int64 [R, L], the example that a cell belongs to; one number for all cells that are empty.
        branches: int64 [R, L], 0 for tokens that the sequences of the example share, else the sequence's number.

    Returns:
        bool [R, 1, L, L]: a query sees the keys before it of its own sequence, and itself.
    """
    length = examples.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=examples.device).tril()
    of_example = examples.unsqueeze(2) == examples.unsqueeze(1)
    of_branch = (branches.unsqueeze(2) == branches.unsqueeze(1)) | (branches.unsqueeze(1) == 0)
    return (before & of_example & of_branch).unsqueeze(1)


def for_attention(model: nn.Module, mask: Tensor) -> Tensor:
    """A mask [R, 1, L, L], True where there is attention, as the model's attention takes it."""
    if model.config._attn_implementation != "eager":
        return mask
    dtype = model.get_input_embeddings().weight.dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def positions_of(batch: dict) -> int:
    """Positions that a forward of a batch computes: those of its packed grid, or of a batch that has none."""
    if "grid" not in batch:
        return batch["input_ids"].numel()
    rows, length = batch["grid"]
    return rows * length


def keeps_all_tokens(config) -> bool:
    """Whether every layer of a model attends to all tokens before: no sliding windows, nothing recurrent."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def reason_not_to_pack(model: nn.Module, arguments: Sequence[str]) -> str | None:
    """Why a model cannot run packed batches, as far as its configuration tells; None: it may.

    Args:
        arguments: the names of what `model.forward` takes.
    """
    if "position_ids" not in arguments:
        return "the model takes no position_ids"
    config = getattr(model, "config", None)
    attention = getattr(config, "_attn_implementation", None)
    if attention not in ("sdpa", "eager"):
        return f"attention implementation {attention} takes no mask of its own; sdpa and eager do"
    if not keeps_all_tokens(config):
        return "not all layers attend to all tokens"
    return None


def _pieces_of(number: int, example: EncodedExample, shared: int) -> list[tuple[int, int, int, int]]:
    lengths = [len(sequence) for sequence in example.sequences]
    if shared:
        return [(sum(lengths) - shared * (len(lengths) - 1), number, 0, len(lengths))]
    return [(length, number, sequence, 1) for sequence, length in enumerate(lengths)]


def _cheapest_grid(lengths: list[int], few_shapes: bool) -> tuple[int, int, list[int]]:
    """Rows, positions a row, and the first cell of each piece; `lengths` are sorted, the longest first."""
    best: tuple[int, int, int, list[tuple[int, int]]] | None = None
    for rows in range(1, len(lengths) + 1):
        places, longest = _filled(lengths, rows)
        multiple = max(COARSE_MULTIPLE, power_of_two(longest) // 16) if few_shapes else LENGTH_MULTIPLE
        length = -(-longest // multiple) * multiple
        cost = rows * length * (POSITION_IN_COMPARISONS + length)
        if best is None or cost < best[0]:
            best = (cost, rows, length, places)
        if longest == lengths[0]:
            break  # more rows would not be shorter
    _, rows, length, places = best
    return rows, length, [row * length + column for row, column in places]


def _filled(lengths: list[int], rows: int) -> tuple[list[tuple[int, int]], int]:
    """(row, column) of each piece, each into the row with the fewest tokens so far; and the tokens of the fullest."""
    filled = [(0, row) for row in range(rows)]
    places = []
    for length in lengths:
        tokens, row = heapq.heappop(filled)
        places.append((row, tokens))
        heapq.heappush(filled, (tokens + length, row))
    return places, max(filled)[0]
