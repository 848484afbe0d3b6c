"""Greedy answers: every prompt is gone on with by its likeliest token, and no token is run twice that need not be.

Prompts that begin alike, as questions about one passage do, share the keys and values of their beginning where that
pays (`xgblora.scoring.shared_prefixes`). A row that has ended leaves, and the rows of the next prompts join those that
are left, as Orca has it (Yu et al., 2022): a step of one row takes a CPU nearly as long as one of ten. Models that do
not read their texts so as they read each alone take slower ways (`xgblora.scoring.greedy_ways`).
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xgblora.scoring.batches import batches_by_length, tokens_per_batch
from xgblora.scoring.greedy_ways import Ways
from xgblora.scoring.live_rows import LiveRows, Writer, joined
from xgblora.scoring.shared_prefixes import PrefixGroup, Text, prefix_groups

# tokens of the rows that are written at a time, at least: on a CPU many more than a forward of prompts has
IN_CACHE = 8192


@dataclass(frozen=True)
class Ends:
    """When a row has ended.

    Attributes:
        tokens: the ids after which nothing is written.
        most: the most tokens that are written.
    """

    tokens: frozenset[int]
    most: int

    def reached(self, written: Sequence[int]) -> bool:
        """Whether what was `written` is all."""
        return bool(written) and (len(written) >= self.most or written[-1] in self.tokens)


@torch.no_grad()
def write(
    model: nn.Module, prompts: Sequence[Sequence[int]], ends: Ends, ways: Ways, *, tokens: int | None = None
) -> list[list[int]]:
    """The tokens that the model writes after each prompt, the one that ends a row among them.

    Args:
        model: in eval mode; one adapter is read.
        prompts: token ids, one or more each.
        ends: of a row.
        ways: of `greedy_ways.ways_for`.
        tokens: the most tokens of a forward, and of the cache; None: what suits the device, and `IN_CACHE`.
    """
    of_forward = tokens or tokens_per_batch(next(model.parameters()).device)
    # half of it for the rows that are there, half for those that join
    half = (tokens or max(of_forward, IN_CACHE)) // 2
    writer, written = Writer(model, spares=ways.spares), [[] for _ in prompts]
    begun = _begun(writer, _groups(prompts, ways), of_forward, half, ends.most)
    # rows that are written next, each part as it was begun: they are joined once, and not as often as one is begun
    parts: list[LiveRows] = []
    while True:
        while parts and (not ways.joins or _cells(parts, ends.most) > half):
            parts = _stepped(writer, parts, written, ends)
        rows = next(begun, None)
        if rows is None:
            break
        parts += _open(*rows, written, ends)
    while parts:
        parts = _stepped(writer, parts, written, ends)
    return written


@torch.no_grad()
def write_in_shares(
    model: nn.Module, prompts: Sequence[Sequence[int]], ends: Ends, ways: Ways, *, shares: int
) -> list[list[int]]:
    """As `write`, for a model that reads several adapters, each for an equal share of the rows: all prompts at once.

    A share keeps as many rows as the one with the most that have not ended.
    """
    writer, written = Writer(model, spares=ways.spares), [[] for _ in prompts]
    parts = _open(*writer.begin(prompts, range(len(prompts))), written, ends, shares)
    while parts:
        parts = _stepped(writer, parts, written, ends, shares)
    return written


def _cells(parts: list[LiveRows], most: int) -> int:
    """Those of the cache when rows are joined and `most` tokens are written to each."""
    return sum(len(rows.numbers) for rows in parts) * (max(rows.mask.shape[1] for rows in parts) + most)


def _stepped(
    writer: Writer, parts: list[LiveRows], written: list[list[int]], ends: Ends, shares: int = 1
) -> list[LiveRows]:
    """A token more for each row, all in one part; none if all have ended."""
    live = joined([rows.trimmed() for rows in parts]) if len(parts) > 1 else parts[0]
    tokens = [written[number][-1] for number in live.numbers]
    return _open(*writer.step(live, tokens), written, ends, shares)


def _open(rows: LiveRows, logits: Tensor, written: list[list[int]], ends: Ends, shares: int = 1) -> list[LiveRows]:
    """Write the likeliest token of each row; the rows that have not ended as one part, if there are any."""
    for number, token in zip(rows.numbers, logits.argmax(dim=-1).tolist(), strict=True):
        # a share may have kept a row that has ended
        if not ends.reached(written[number]):
            written[number].append(token)
    ended = [ends.reached(written[number]) for number in rows.numbers]
    if all(ended):
        return []
    size = len(ended) // shares
    of_shares = [range(start, start + size) for start in range(0, len(ended), size)]
    most = max(sum(not ended[place] for place in share) for share in of_shares)
    kept = [sorted(sorted(share, key=ended.__getitem__)[:most]) for share in of_shares]
    return [rows if most == size else rows.only(list(itertools.chain(*kept)))]


def _groups(prompts: Sequence[Sequence[int]], ways: Ways) -> list[PrefixGroup]:
    """The prompts by what they share; as the number of its candidate each has its own number."""
    texts = [Text(tuple(ids), ((len(ids) - 1, 0, number),)) for number, ids in enumerate(prompts)]
    return prefix_groups(texts) if ways.joins else [PrefixGroup(0, (text,)) for text in texts]


def _begun(
    writer: Writer, groups: list[PrefixGroup], of_forward: int, in_cache: int, most: int
) -> Iterator[tuple[LiveRows, Tensor]]:
    """Rows and their logits, of a batch of prompts at a time."""

    def batches(texts: list, length: Callable, before: int) -> Iterator[list]:
        for some in batches_by_length(texts, length, tokens=in_cache, extra=before + most):
            yield from batches_by_length(some, length, tokens=of_forward)

    whole = [text for group in groups if not group.shared for text in group.texts]
    for some in batches(whole, lambda text: len(text.ids), 0):
        yield writer.begin([text.ids for text in some], list(map(_number, some)))
    shared = [group for group in groups if group.shared]
    for some in batches_by_length(shared, lambda group: group.shared, tokens=of_forward):
        beginnings, _ = writer.begin([group.texts[0].ids[: group.shared] for group in some], range(len(some)))
        ends = [(which, text.after(group.shared)) for which, group in enumerate(some) for text in group.texts]
        for few in batches(ends, lambda end: len(end[1].ids), some[0].shared):
            which, texts = zip(*few, strict=True)
            yield writer.begin_after(beginnings, which, [text.ids for text in texts], list(map(_number, texts)))


def _number(text: Text) -> int:
    ((_, _, number),) = text.targets
    return number
