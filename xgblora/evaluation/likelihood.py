"""Mean log-probabilities of candidates: no token is run twice that need not be.

Candidates that differ in their last token alone are one sequence already (`tasks.encoding`). Of the others the prefix
that they share is run once and kept in a KV cache, from which their different ends go on, where that saves at least
`WORTH_A_CACHE` of the tokens; fewer do not pay for a second forward and for copying the cache. Models that keep
something else than the keys and values of all tokens run the plain way.

Sequences are padded on the right, where a causal model does not see it; prefixes in a cache are padded on the left and
masked. Only the rows that predict an option token go through the vocabulary projection.
"""

import inspect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from xgblora.evaluation.batches import batches_of, tokens_per_batch
from xgblora.tasks import EncodedExample
from xgblora.tasks.packing import common_prefix, keeps_all_tokens

WORTH_A_CACHE = 0.25


@dataclass(frozen=True)
class _Branch:
    """A sequence of an example, without the prefix that is in the cache.

    Attributes:
        prefix: the place of the example in the batch of prefixes.
        ids: the token ids to run.
        targets: `(index into ids, token id that it should predict, candidate)`; candidates are numbered over all
            examples.
    """

    prefix: int
    ids: tuple[int, ...]
    targets: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class _Prefixes:
    """Prefixes that were run: their cache, `lengths` [E] and `mask` [E, P]."""

    cache: DynamicCache
    lengths: Tensor
    mask: Tensor


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
        examples: what `tasks.encode` made.
        pad_token_id: any id; what stands there changes nothing.
        tokens: the most tokens of a forward, those in the cache among them; None: what suits the device.
    """
    device = next(model.parameters()).device
    tokens = tokens or tokens_per_batch(device)
    first = [0]
    for example in examples:
        first.append(first[-1] + len(example.options))
    lengths = [shared_prefix(example) for example in examples] if takes_a_cache(model) else [0] * len(examples)
    plain = [
        branch
        for example, length, slot in zip(examples, lengths, first, strict=False)
        if not length
        for branch in _branches(example, 0, 0, slot)
    ]
    shared = [place for place, length in enumerate(lengths) if length]
    with _HeadRows(model) as head:
        run = _Run(model, head, torch.zeros(first[-1], device=device), pad_token_id)
        for batch in batches_of(plain, lambda branch: len(branch.ids), tokens=tokens):
            run.branches(batch)
        for places in batches_of(shared, lengths.__getitem__, tokens=tokens):
            prefixes = run.prefixes([examples[place].sequences[0][: lengths[place]] for place in places])
            branches = [
                branch
                for number, place in enumerate(places)
                for branch in _branches(examples[place], lengths[place], number, first[place])
            ]
            longest = lengths[places[0]]
            for batch in batches_of(branches, lambda branch: len(branch.ids), tokens=tokens, extra=longest):
                run.branches(batch, prefixes)
    counts = [len(option) for example in examples for option in example.options]
    means = [total / count for total, count in zip(run.totals.tolist(), counts, strict=True)]
    return [means[start:stop] for start, stop in itertools.pairwise(first)]


def shared_prefix(example: EncodedExample) -> int:
    """How many tokens the sequences of an example share and need run once only; 0 where a cache does not pay."""
    if len(example.sequences) == 1:
        return 0
    # the rows that predict an option belong to the branches
    common = min(common_prefix(example), *(index for _, index in example.rows))
    saved = common * (len(example.sequences) - 1)
    return common if saved >= WORTH_A_CACHE * sum(map(len, example.sequences)) else 0


def takes_a_cache(model: nn.Module) -> bool:
    """Whether a forward takes a cache of the keys and values of all tokens, in every layer."""
    return "past_key_values" in inspect.signature(type(model).forward).parameters and keeps_all_tokens(model.config)


def _branches(example: EncodedExample, length: int, prefix: int, slot: int) -> list[_Branch]:
    """The sequences of an example beyond `length` tokens; `slot` is the number of its first candidate."""
    targets: list[list[tuple[int, int, int]]] = [[] for _ in example.sequences]
    for candidate, option in enumerate(example.options):
        for row, token in option:
            sequence, index = example.rows[row]
            targets[sequence].append((index - length, token, slot + candidate))
    return [
        _Branch(prefix, ids[length:], tuple(wanted)) for ids, wanted in zip(example.sequences, targets, strict=True)
    ]


class _Run:
    """The forwards of one evaluation; `totals` fp32 [candidates] adds up the log-probabilities of option tokens."""

    def __init__(self, model: nn.Module, head: "_HeadRows", totals: Tensor, pad_token_id: int):
        self.totals = totals
        self._model, self._head, self._pad = model, head, pad_token_id
        self._takes_positions = "position_ids" in inspect.signature(type(model).forward).parameters

    def prefixes(self, texts: list[tuple[int, ...]]) -> _Prefixes:
        """Run E prefixes, padded on the left."""
        longest = max(map(len, texts))
        ids = self._tensor([[self._pad] * (longest - len(text)) + list(text) for text in texts])
        lengths = self._tensor([len(text) for text in texts])
        mask = (torch.arange(longest, device=ids.device) >= longest - lengths[:, None]).long()
        cache = DynamicCache(config=self._model.config)
        with self._head.only(torch.zeros(1, dtype=torch.int64, device=ids.device)):
            self._forward(ids, mask, (mask.cumsum(dim=1) - 1).clamp_(min=0), past_key_values=cache, use_cache=True)
        return _Prefixes(cache, lengths, mask)

    def branches(self, branches: list[_Branch], prefixes: _Prefixes | None = None) -> None:
        """Run N branches, padded on the right, and add what they give to `totals`."""
        longest = max(len(branch.ids) for branch in branches)
        ids = self._tensor([list(branch.ids) + [self._pad] * (longest - len(branch.ids)) for branch in branches])
        wanted = [
            (row * longest + index, token, slot)
            for row, branch in enumerate(branches)
            for index, token, slot in branch.targets
        ]
        places, tokens, slots = self._tensor(wanted).unbind(dim=1)
        rows, inverse = places.unique(return_inverse=True)
        with self._head.only(rows):
            if prefixes is None:
                logits = self._forward(ids, None, None, use_cache=False)
            else:
                logits = self._forward_after(prefixes, branches, ids)
        logits = logits.view(len(rows), -1).float()
        chosen = logits[inverse, tokens] - logits.logsumexp(dim=-1)[inverse]
        self.totals.index_add_(0, slots, chosen)

    def _forward_after(self, prefixes: _Prefixes, branches: list[_Branch], ids: Tensor) -> Tensor:
        which = self._tensor([branch.prefix for branch in branches])
        lengths = self._tensor([len(branch.ids) for branch in branches])[:, None]
        steps = torch.arange(ids.shape[1], device=ids.device)
        cache = DynamicCache([(layer.keys[which], layer.values[which]) for layer in prefixes.cache.layers])
        mask = torch.cat([prefixes.mask[which], (steps < lengths).long()], dim=1)
        # the position of padding must be one that the model has
        positions = prefixes.lengths[which, None] + steps.minimum(lengths - 1)
        return self._forward(ids, mask, positions, past_key_values=cache, use_cache=True)

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, **arguments) -> Tensor:
        if positions is not None and self._takes_positions:
            arguments["position_ids"] = positions
        return self._model(input_ids=ids, attention_mask=mask, **arguments).logits

    def _tensor(self, values: list) -> Tensor:
        return torch.tensor(values, device=self.totals.device)


class _HeadRows:
    """Within the block, a hook on the output embeddings that lets only chosen rows through; none is left behind."""

    def __init__(self, model: nn.Module):
        self._head = model.get_output_embeddings()
        self._rows: Tensor | None = None

    def __enter__(self) -> "_HeadRows":
        self._handle = self._head.register_forward_pre_hook(self._gather)
        return self

    def __exit__(self, *error) -> None:
        self._handle.remove()

    @contextmanager
    def only(self, rows: Tensor) -> Iterator[None]:
        """Let through these rows [R] of the flattened batch: logits are [1, R, V]."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    def _gather(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._rows is None:
            return None
        hidden = inputs[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._rows).unsqueeze(0), *inputs[1:])
