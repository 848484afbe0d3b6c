"""Mean log-probabilities of candidates: no token is run twice that need not be.

Candidates that differ in their last token alone are one text already (`scoring.encoding`). A prefix that texts share,
be they candidates of one example, questions about one article or questions after the same demonstrations, is run once
and kept in a KV cache, where that pays (`xgblora.scoring.shared_prefixes`). From there their ends go on, several in one
row, with a mask that keeps them apart. Models that keep something else than the keys and values of all tokens run every
text whole.

Whole texts are padded on the right, where a causal model does not see it; prefixes are padded on the left and masked.
What predicts no option token is spared the end of the model (`xgblora.scoring.option_rows`). Each of these is tried
once for a model (`xgblora.scoring.truth`), and left where it gives other scores than texts alone.
"""

import inspect
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from xgblora.scoring.batches import batches_by_length, tokens_per_batch
from xgblora.scoring.encoding import EncodedExample
from xgblora.scoring.masked import fills_masks, without_cache
from xgblora.scoring.option_rows import OptionRows, Rows, last_layer, places_of
from xgblora.scoring.packing import common_prefix, for_attention, keeps_all_tokens, keeps_apart, reason_not_to_pack
from xgblora.scoring.shared_prefixes import PrefixGroup, Text, prefix_groups
from xgblora.scoring.together import ALL, Together, rules_for
from xgblora.scoring.truth import Truth, truth_of

logger = logging.getLogger("xgblora")

# Tokens of the ends that stand in one row. Every one is compared with all of its row, which costs a quarter more at
# 512 (see POSITION_IN_COMPARISONS), and every row has a copy of the cache.
ROW = 512


@torch.no_grad()
def log_probabilities(
    model: nn.Module,
    examples: Sequence[EncodedExample],
    *,
    pad_token_id: int = 0,
    tokens: int | None = None,
) -> list[list[float]]:
    """For each example the mean log-probability of the option tokens of each candidate.

    Args:
        model: a causal language model in eval mode.
        examples: what `scoring.encode` made.
        pad_token_id: any id; what stands there changes nothing.
        tokens: the most tokens of a forward, those in the cache among them; None: what suits the device.
    """
    device = next(model.parameters()).device
    texts = [text for slot, example in _numbered(examples) for text in _texts(example, slot)]
    counts = [len(option) for example in examples for option in example.options]
    totals = torch.zeros(len(counts), device=device)
    if texts:
        longest = max(len(text.ids) for text in texts)
        _Forwards(model, pad_token_id, tokens or tokens_per_batch(device), longest).add(texts, totals)
    means = iter(total / count for total, count in zip(totals.tolist(), counts, strict=True))
    return [list(itertools.islice(means, len(example.options))) for example in examples]


def _texts(example: EncodedExample, slot: int) -> list[Text]:
    """The sequences of an example; `slot` is the number of its first candidate."""
    targets: list[list[tuple[int, int, int]]] = [[] for _ in example.sequences]
    for candidate, option in enumerate(example.options):
        for row, token in option:
            sequence, index = example.rows[row]
            targets[sequence].append((index, token, slot + candidate))
    return [Text(ids, tuple(wanted)) for ids, wanted in zip(example.sequences, targets, strict=True)]


@dataclass(frozen=True)
class _Prefixes:
    """Prefixes that were run: their cache, `lengths` [E] and `mask` [E, P]."""

    cache: DynamicCache
    lengths: Tensor
    mask: Tensor


@dataclass(frozen=True)
class _Row:
    """Ends that stand side by side in one row, after prefix number `prefix` of those in the cache."""

    prefix: int
    ends: tuple[Text, ...]

    def __len__(self) -> int:
        return sum(len(end.ids) for end in self.ends)

    def targets(self) -> list[tuple[int, int, int]]:
        """The targets of its ends, by their places in the row."""
        starts = itertools.accumulate((len(end.ids) for end in self.ends), initial=0)
        return [
            (start + index, token, candidate)
            for start, end in zip(starts, self.ends, strict=False)
            for index, token, candidate in end.targets
        ]


@dataclass(frozen=True)
class _Ways:
    """How a model runs texts of up to `longest` tokens, by what a trial has shown.

    Attributes:
        together: which whole texts may be padded up to one another.
        spares: whether the last layer computes no more rows than are read.
        shares: whether prefixes may be run once.
    """

    longest: int
    attention: str | None
    together: Together
    spares: bool
    shares: bool


# an evaluation comes in windows, and a run has several: each model is tried once for texts of a length
_TRIED: WeakKeyDictionary[nn.Module, _Ways] = WeakKeyDictionary()


class _Forwards:
    """The forwards of one evaluation.

    Args:
        tokens: the most tokens of a forward.
        longest: of the tokens of a text.
    """

    def __init__(self, model: nn.Module, pad_token_id: int, tokens: int, longest: int):
        self._model, self._pad, self._tokens = model, pad_token_id, tokens
        self._device = next(model.parameters()).device
        self._rows = OptionRows(model)
        attention = getattr(model.config, "_attn_implementation", None)
        ways = _TRIED.get(model)
        if ways is None or ways.longest < longest or ways.attention != attention:
            ways = _TRIED[model] = self._tried(truth_of(model, longest), attention)
        self._together, self._shares = ways.together, ways.shares
        self._rows.layer = last_layer(model) if ways.spares else None

    def add(self, texts: Sequence[Text], totals: Tensor) -> None:
        """Add the log-probabilities of all targets to `totals` fp32 [candidates]."""
        groups = prefix_groups(texts) if self._shares else _apart(texts)
        alone = [text for group in groups if not group.shared for text in group.texts]
        self._run_whole(alone, totals)
        self._run_shared([group for group in groups if group.shared], totals)

    def _run_whole(self, texts: list[Text], totals: Tensor) -> None:
        for places in self._together.groups([len(text.ids) for text in texts]):
            some = [texts[place] for place in places]
            for batch in batches_by_length(some, lambda text: len(text.ids), tokens=self._tokens):
                self._run(batch, totals)

    def _run_shared(self, groups: list[PrefixGroup], totals: Tensor) -> None:
        for batch in batches_by_length(groups, lambda group: group.shared, tokens=self._tokens):
            prefixes = self._prefixes([group.texts[0].ids[: group.shared] for group in batch])
            rows = [row for number, group in enumerate(batch) for row in _rows_of(group, number)]
            for some in batches_by_length(rows, len, tokens=self._tokens, extra=batch[0].shared):
                self._run_after(prefixes, some, totals)

    def _run(self, texts: list[Text], totals: Tensor) -> None:
        """Run whole texts, padded on the right."""
        length = max(len(text.ids) for text in texts)
        ids = self._padded([text.ids for text in texts], length)
        seen = [[1] * len(text.ids) for text in texts]
        arguments = {"attention_mask": self._padded(seen, length, 0)} if fills_masks(self._model) else {}
        self._score(ids, [text.targets for text in texts], totals, **arguments)

    def _prefixes(self, texts: list[tuple[int, ...]]) -> _Prefixes:
        """Run E prefixes, padded on the left."""
        longest = max(map(len, texts))
        ids = self._tensor([[self._pad] * (longest - len(text)) + list(text) for text in texts])
        lengths = self._tensor([len(text) for text in texts])
        mask = (torch.arange(longest, device=ids.device) >= longest - lengths[:, None]).long()
        cache = DynamicCache(config=self._model.config)
        # of the last layer a cache wants the keys and values; some row must be computed: the last, which no text lacks
        last = torch.arange(1, len(texts) + 1, device=ids.device).unsqueeze(1) * longest - 1
        positions = (mask.cumsum(dim=1) - 1).clamp_(min=0)
        with self._rows.only(Rows(last[0], last)):
            self._logits(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        return _Prefixes(cache, lengths, mask)

    def _run_after(self, prefixes: _Prefixes, rows: list[_Row], totals: Tensor) -> None:
        """Run rows of ends, padded on the right, after the prefixes in the cache."""
        length = max(map(len, rows))
        ids = self._padded([[token for end in row.ends for token in end.ids] for row in rows], length)
        # 0 is for padding
        numbers = [[number for number, end in enumerate(row.ends, 1) for _ in end.ids] for row in rows]
        steps = [[step for end in row.ends for step in range(len(end.ids))] for row in rows]
        numbers, steps = (self._padded(values, length, 0) for values in (numbers, steps))
        which = self._tensor([row.prefix for row in rows])
        before = prefixes.mask[which].bool()[:, None, None].expand(-1, -1, length, -1)
        mask = torch.cat([before, keeps_apart(numbers, numbers)], dim=-1)
        arguments = {
            "attention_mask": for_attention(self._model, mask),
            "position_ids": prefixes.lengths[which, None] + steps,
            "past_key_values": DynamicCache([_rows_of_layer(kept, which) for kept in prefixes.cache.layers]),
            "use_cache": True,
        }
        self._score(ids, [row.targets() for row in rows], totals, **arguments)

    def _score(self, ids: Tensor, targets: list[Sequence[tuple[int, int, int]]], totals: Tensor, **arguments) -> None:
        """Run `ids` [N, T] and add what its rows give to their targets (place in the row, token id, candidate)."""
        length = ids.shape[1]
        flat = [
            (row * length + index, token, slot) for row, of_row in enumerate(targets) for index, token, slot in of_row
        ]
        wanted, tokens, slots = self._tensor(flat).unbind(dim=1)
        rows, inverse = wanted.unique(return_inverse=True)
        places = places_of([sorted({index for index, _, _ in of_row}) for of_row in targets], length)
        with self._rows.only(Rows(rows, None if places is None else self._tensor(places))):
            logits = self._logits(ids, **arguments)
        logits = logits.view(len(rows), -1).float()
        totals.index_add_(0, slots, logits[inverse, tokens] - logits.logsumexp(dim=-1)[inverse])

    def _tried(self, truth: Truth, attention: str | None) -> _Ways:
        """The fastest ways that give the scores of texts alone.

        Raises:
            InputError: none does.
        """
        texts = [text for slot, example in _numbered(truth.examples) for text in _texts(example, slot)]
        shared = [_shared(example, slot) for slot, example in _numbered(truth.examples) if common_prefix(example)]
        rest = [text for text in texts if not any(text in group.texts for group in shared)]

        def reason(run: Callable[[Tensor], None]) -> str | None:
            def scores() -> Tensor:
                totals = torch.zeros_like(truth.expected)
                run(totals)
                return totals

            return truth.reason_against(self._model, scores, others="its scores are others then")

        def run_shared(totals: Tensor) -> None:
            self._run_whole(rest, totals)
            self._run_shared(shared, totals)

        reasons = []
        for together in rules_for(self._model, truth.longest):
            self._together = together
            reasons.append(reason(partial(self._run_whole, texts)))
            if reasons[-1] is None:
                break
            logger.info("An evaluation does not run %s in one forward: %s", together.name, reasons[-1])
        else:
            raise truth.refusal(self._model, reasons[-1])
        forgets = None if keeps_all_tokens(self._model.config) else "it forgets tokens"
        forgets = "it reads both ways" if fills_masks(self._model) else forgets
        spares = forgets or self._rows.spare(self._model, lambda: reason(partial(self._run_whole, texts)))
        shares = forgets or self._reason_not_to_share() or reason(run_shared)
        for what, why in (("The last layer computes all positions", spares), ("Prefixes are not shared", shares)):
            if why:
                logger.debug("%s: %s", what, why)
        return _Ways(truth.longest, attention, self._together, spares is None, shares is None)

    def _reason_not_to_share(self) -> str | None:
        """Why no prefixes are shared, as far as the model itself tells."""
        arguments = inspect.signature(self._model.forward).parameters
        if self._together is not ALL:
            return f"{self._together.name} alone stand together"
        if "past_key_values" not in arguments:
            return "the model takes no past_key_values"
        return reason_not_to_pack(self._model, list(arguments))

    def _logits(self, ids: Tensor, **arguments) -> Tensor:
        return self._model(**{"input_ids": ids, **without_cache(self._model), **arguments}).logits

    def _padded(self, rows: list[Sequence[int]], length: int, filler: int | None = None) -> Tensor:
        filler = self._pad if filler is None else filler
        return self._tensor([list(row) + [filler] * (length - len(row)) for row in rows])

    def _tensor(self, values: list) -> Tensor:
        return torch.tensor(values, device=self._device)


def _rows_of_layer(layer: DynamicLayer, which: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the rows `which` of a layer's cache."""
    which = which.to(layer.keys.device)
    return layer.keys[which], layer.values[which]


def _apart(texts: Sequence[Text]) -> list[PrefixGroup]:
    """Each text whole."""
    return [PrefixGroup(0, (text,)) for text in texts]


def _shared(example: EncodedExample, slot: int) -> PrefixGroup:
    """The sequences of an example as one group, whose prefix reaches no token with a target."""
    texts = tuple(_texts(example, slot))
    return PrefixGroup(min(common_prefix(example), *(index for text in texts for index, *_ in text.targets)), texts)


def _numbered(examples: Sequence[EncodedExample]) -> list[tuple[int, EncodedExample]]:
    """Each example with the number of its first candidate."""
    first = itertools.accumulate((len(example.options) for example in examples), initial=0)
    return list(zip(first, examples, strict=False))


def _rows_of(group: PrefixGroup, number: int) -> list[_Row]:
    """The ends of a group, whose prefix is number `number` in the cache, in rows of at most `ROW` tokens."""
    rows: list[list[Text]] = []
    room = 0
    for text in group.texts:
        end = text.after(group.shared)
        if len(end.ids) > room:
            rows.append([])
            room = ROW
        rows[-1].append(end)
        room -= len(end.ids)
    return [_Row(number, tuple(ends)) for ends in rows]
