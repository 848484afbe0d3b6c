"""Scores of batches that are padded on the right, for models whose texts are not packed, and an evaluation with them.

As with all other ways, a few texts of all lengths are tried first: their scores must be those of each text alone. Where
texts of other lengths disturb one another, those of one range or of one length run together.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from xgblora.errors import InputError
from xgblora.scoring.batches import batches_by_length, tokens_per_batch
from xgblora.scoring.position_limit import position_limit
from xgblora.scoring.together import ALL, rules_for
from xgblora.scoring.truth import LONGEST, agree, can_be_tried, computes_in
from xgblora.short_texts import MISFITS, undisturbed
from xgblora.spelling import one_line

logger = logging.getLogger("xgblora")

Batch = dict[str, Any]


@dataclass(frozen=True)
class Padded:
    """How models of a kind run texts that are padded on the right.

    Attributes:
        collate: examples and a padding id to a batch: tensors with the examples first, `input_ids` and `attention_mask`
            [B, T] among them, and the plain values `copies` and `groups` as of `Collator`.
        run: the scores fp32 [B, C] of a batch.
        alone: the scores [C] of one example by plain forwards of one unpadded text each.
        trial: examples of texts of these lengths, of plain tokens of the model.
    """

    collate: Callable[[list, int], Batch]
    run: Callable[[nn.Module, Batch], Tensor]
    alone: Callable[[nn.Module, Any], Tensor]
    trial: Callable[[nn.Module, Sequence[int]], list]

    def collator(self, pad_token_id: int, few_shapes: bool = False) -> Callable[[list], Batch]:
        """What makes batches; their shapes are as they come."""
        return lambda examples: self.collate(examples, pad_token_id)

    def scorer(self, model: nn.Module, longest: int | None = None) -> "PaddedScorer":
        """The scorer of `model` for texts of up to `longest` tokens."""
        return PaddedScorer(self, model, longest)

    @torch.no_grad()
    def log_probabilities(
        self, model: nn.Module, examples: Sequence[Any], *, pad_token_id: int = 0, tokens: int | None = None
    ) -> list[list[float]]:
        """As of `scoring.log_probabilities`."""
        device = next(model.parameters()).device
        scorer = _scorer_of(self, model, max(map(len, examples), default=0))
        pad = getattr(model.config, "pad_token_id", None)
        found: dict[int, list[float]] = {}
        numbered = list(enumerate(examples))
        for some in batches_by_length(numbered, lambda one: len(one[1]), tokens=tokens or tokens_per_batch(device)):
            batch = self.collate([example for _, example in some], pad_token_id if pad is None else pad)
            scores = scorer.scores(model, _on(batch, device)).tolist()
            for (number, example), of_one in zip(some, scores, strict=True):
                found[number] = of_one[: len(example.options)]
        return [found[number] for number in range(len(examples))]


class PaddedScorer:
    """The scores of batches, by the fastest way that gives those of each text alone.

    Args:
        padded: how models of the kind run.
        model: the model.
        longest: tokens of the longest text; None: a few.

    Raises:
        InputError: the model cannot read such a text, or no way gives its scores.
    """

    packs = False

    def __init__(self, padded: Padded, model: nn.Module, longest: int | None = None):
        self._padded, self._together = padded, ALL
        self.longest = max(longest or 0, min(LONGEST, position_limit(model) or LONGEST))
        if can_be_tried(model):
            self._try(model)

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """fp32 [B, C] mean log-probabilities."""
        if self._together is ALL:
            return self._padded.run(model, batch)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        groups = self._together.groups(lengths)
        parts = [
            self._padded.run(model, _members(batch, group, max(lengths[one] for one in group))) for group in groups
        ]
        order = torch.tensor([place for group in groups for place in group], device=parts[0].device)
        return torch.cat(parts)[order.argsort()]

    def relative_scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """As `scores`."""
        return self.scores(model, batch)

    @torch.no_grad()
    def _try(self, model: nn.Module) -> None:
        kind, device = type(model).__name__, next(model.parameters()).device
        dtype = computes_in(model)
        try:
            examples = self._padded.trial(model, _lengths(self.longest))
            with undisturbed(model):
                expected = torch.stack([self._padded.alone(model, example) for example in examples])
        except InputError:
            raise
        except MISFITS as error:
            reason = one_line(error, limit=200)
            raise InputError(f"{kind} cannot read a text of {self.longest} tokens ({reason})") from error
        batch = _on(self._padded.collate(examples, getattr(model.config, "pad_token_id", None) or 0), device)
        reasons = []
        for together in rules_for(model, self.longest):
            self._together = together
            try:
                with undisturbed(model):
                    if agree(self.scores(model, batch), expected, dtype):
                        break
                reasons.append(f"{self._together.name}: scores are others then")
            except MISFITS as error:
                reasons.append(f"{self._together.name}: {one_line(error, limit=100)}")
        else:
            raise InputError(
                f"{kind}: a text of up to {self.longest} tokens has other scores in a batch than alone "
                f"({'; '.join(reasons)}); give a smaller --max_length, or another model"
            )
        if reasons:
            logger.info("Batches run %s in a forward (%s)", self._together.name, "; ".join(reasons))


# an evaluation comes in windows, and a run has several: each model is tried once for texts of a length
_TRIED: WeakKeyDictionary[nn.Module, PaddedScorer] = WeakKeyDictionary()


def _scorer_of(padded: Padded, model: nn.Module, longest: int) -> PaddedScorer:
    scorer = _TRIED.get(model)
    if scorer is None or scorer.longest < longest:
        scorer = _TRIED[model] = padded.scorer(model, longest)
    return scorer


def _lengths(longest: int) -> list[int]:
    return [longest, max(3 * longest // 4, 3), max(longest // 4, 3), 3]


def _on(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _members(batch: Batch, members: list[int], longest: int) -> Batch:
    some = {name: value[members] if isinstance(value, Tensor) else value for name, value in batch.items()}
    return {**some, **{name: some[name][:, :longest] for name in ("input_ids", "attention_mask")}}


def padded_on_the_right(texts: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """int64 [N, T] ids and their mask."""
    longest = max(map(len, texts))
    ids = [[*text, *[filler] * (longest - len(text))] for text in texts]
    mask = [[1] * len(text) + [0] * (longest - len(text)) for text in texts]
    return torch.tensor(ids), torch.tensor(mask)
