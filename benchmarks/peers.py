"""The peers, written here in their published form."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from xgblora.scoring.encoding import option_start
from xgblora.tasks import Sample


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
    """The classification loss with every position through the vocabulary, one sequence a candidate (MeZO's forward).

    Args:
        batch: `input_ids`, `attention_mask` [B * C, T] padded on the left, the candidate's one token last;
            `label` [B].
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    log_probabilities = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    chosen = log_probabilities.gather(2, batch["input_ids"][:, 1:].unsqueeze(2)).squeeze(2)
    scores = chosen[:, -1].view(len(batch["label"]), -1)
    return nn.functional.cross_entropy(scores, batch["label"])


@torch.no_grad()
def one_candidate_at_a_time(model: nn.Module, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]) -> list[int]:
    """The chosen candidate of each sample, by a forward a candidate with every position through the vocabulary.

    MeZO's evaluation (`one_step_pred` of its large_models/run.py).
    """
    device, chosen = next(model.parameters()).device, []
    for sample in samples:
        scores = []
        for text in sample.candidates:
            ids, start = option_start(tokenizer, sample.prompt, text)
            ids = torch.tensor([ids], device=device)
            log_probabilities = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), dim=-1)
            of_tokens = log_probabilities.gather(1, ids[0, 1:].unsqueeze(1)).squeeze(1)
            scores.append(of_tokens[start - 1 :].mean().item())
        chosen.append(scores.index(max(scores)))
    return chosen
