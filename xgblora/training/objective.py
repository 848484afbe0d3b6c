"""Objectives: what a step minimises, as a callable `(model, batch) -> losses`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xgblora.tasks import OptionScorer


class CandidateObjective:
    """The loss of a task with candidate answers, one an example.

    Args:
        model: the model that will be trained.
        classification: True: cross-entropy over the candidates' scores. False: minus the score of the right candidate,
            its mean negative log-likelihood (MeZO's only-option loss).
    """

    def __init__(self, model: nn.Module, *, classification: bool):
        self._scorer = OptionScorer(model)
        self._classification = classification

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """fp32 [B] losses."""
        return self.losses(self.scores(model, batch), batch["label"])

    def scores(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """fp32 [B, C] mean log-probabilities of the candidates."""
        return self._scorer.scores(model, batch)

    def losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        """fp32 [B] losses of scores [B, C] and labels [B]."""
        if self._classification:
            return F.cross_entropy(scores, labels, reduction="none")
        return -scores.gather(1, labels.unsqueeze(1)).squeeze(1)


def model_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss that the model itself computes from `labels` in the batch: a scalar, so nothing can be stacked."""
    loss = model(**batch).loss
    if not isinstance(loss, torch.Tensor):
        raise ValueError("the model returned no loss: give labels in the batch, or an objective")
    return loss
