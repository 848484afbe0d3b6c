"""Objectives of texts: what a step minimises, as a callable `(model, batch) -> losses` on batches of `Collator`."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xgblora.scoring import OptionScorer
from xgblora.scoring.forms import form_of

LossOfScores = Callable[[Tensor, Tensor], Tensor]


def option_nll(scores: Tensor, labels: Tensor) -> Tensor:
    """Minus the score of the right candidate: its mean negative log-likelihood (MeZO's only-option loss).

    Args:
        scores: fp32 [B, C], mean log-probabilities of the candidates, -inf where there is none.
        labels: int64 [B].

    Returns:
        fp32 [B].
    """
    return -scores.gather(1, labels.unsqueeze(1)).squeeze(1)


def classification(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the candidates; shapes as of `option_nll`."""
    return F.cross_entropy(scores, labels, reduction="none")


def zero_one(scores: Tensor, labels: Tensor) -> Tensor:
    """0 where the right candidate is the first of the best, else 1; shapes as of `option_nll`. It has no gradient."""
    return (scores.argmax(dim=1) != labels).float()


# what reads the order or the softmax of scores alone
RELATIVE = (classification, zero_one)


@runtime_checkable
class ChoosingObjective(Protocol):
    """An objective that also says which candidate the model chose, so that an evaluation knows the accuracy."""

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """fp32 [B] losses."""

    def losses_and_choices(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """fp32 [B] losses and int64 [B] chosen candidates, to be compared with the batch's `label` [B]."""


class CandidateObjective:
    """A loss of the candidates' scores.

    Args:
        model: the model that will be trained.
        loss: of scores [B, C] and labels [B]: `option_nll`, `classification`, `zero_one` or another.
        longest: the tokens of the longest text, see `OptionScorer`.

    Attributes:
        scorer: what runs the batches.
    """

    def __init__(self, model: nn.Module, loss: LossOfScores = option_nll, *, longest: int | None = None):
        self.scorer = form_of(model).scorer(model, longest)
        self.loss = loss
        self._scores = self.scorer.relative_scores if loss in RELATIVE else self.scorer.scores

    @property
    def packs(self) -> bool:
        """Whether batches run without padding."""
        return self.scorer.packs

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self.loss(self._scores(model, batch), batch["label"])

    def losses_and_choices(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        scores = self._scores(model, batch)
        return self.loss(scores, batch["label"]), scores.argmax(dim=1)


class LanguageModelObjective:
    """Minus the mean log-probability of all tokens of the right text but the first, one loss an example.

    Takes batches of examples encoded with `whole_text`.

    Args:
        model: the model that will be trained.
        longest: the tokens of the longest text, see `OptionScorer`.

    Attributes:
        scorer: what runs the batches.
    """

    def __init__(self, model: nn.Module, *, longest: int | None = None):
        self.scorer = OptionScorer(model, longest)

    @property
    def packs(self) -> bool:
        """Whether batches run without padding."""
        return self.scorer.packs

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return -self.scorer.scores(model, batch)[:, 0]

    def losses_and_choices(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        scores = self.scorer.scores(model, batch)
        return -scores[:, 0], scores[:, 1:].argmax(dim=1) + 1


def model_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss that the model itself computes from `labels` in the batch: a scalar, so nothing can be stacked."""
    loss = model(**batch).loss
    if not isinstance(loss, torch.Tensor):
        raise ValueError("the model returned no loss: give labels in the batch, or an objective")
    return loss
