"""MeZO's step and its forward."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class MezoStep:
    """MeZO's step (Malladi et al., 2023, algorithm 1) over the given parameters.

    Perturbs in place by +eps z, -2 eps z, +eps z and makes z anew from a seed of torch's generator each time, one
    random tensor a parameter; the signs run one after the other.

    Args:
        parameters: what is trained.
        loss: `(batch) -> scalar`, for the parameters as they are.
    """

    def __init__(self, parameters: list[nn.Parameter], loss: Callable[[dict], Tensor], *, eps: float, lr: float):
        self.parameters, self.loss, self.eps, self.lr = parameters, loss, eps, lr

    @torch.no_grad()
    def __call__(self, batch: dict, seed: int) -> float:
        """One step; returns the projected gradient."""
        self._perturb(seed, self.eps)
        plus = self.loss(batch)
        self._perturb(seed, -2 * self.eps)
        minus = self.loss(batch)
        self._perturb(seed, self.eps)
        projected = ((plus - minus) / (2 * self.eps)).item()
        self._perturb(seed, -self.lr * projected)
        return projected

    def _perturb(self, seed: int, size: float) -> None:
        torch.manual_seed(seed)
        for parameter in self.parameters:
            z = torch.normal(mean=0.0, std=1.0, size=parameter.size(), device=parameter.device, dtype=parameter.dtype)
            parameter.data.add_(z, alpha=size)


def full_logits_loss(model: nn.Module, batch: dict) -> Tensor:
    """The classification loss with every position through the vocabulary, one text a candidate: MeZO's own form.

    Log-probabilities are in the dtype of the model, as there.

    Args:
        batch: `input_ids`, `attention_mask` [B * C, T] padded on the left, the candidate's one token last;
            `label` [B].
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    log_probabilities = torch.log_softmax(logits[:, :-1], dim=-1)
    chosen = log_probabilities.gather(2, batch["input_ids"][:, 1:].unsqueeze(2)).squeeze(2)
    scores = chosen[:, -1].float().view(len(batch["label"]), -1)
    return nn.functional.cross_entropy(scores, batch["label"])


def same_rows_losses(model: nn.Module, batch: dict) -> Tensor:
    """The same losses from one text an example, still with every position through the vocabulary: [B].

    What is left of MeZO's forward when candidates of one token are read off the same row, as ours are.

    Args:
        batch: `input_ids`, `attention_mask` [B, T] padded on the left; `options` [B, C], the candidates' tokens;
            `label` [B].
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    scores = torch.log_softmax(logits, dim=-1)[:, -1].gather(1, batch["options"]).float()
    return nn.functional.cross_entropy(scores, batch["label"], reduction="none")
