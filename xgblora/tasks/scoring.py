"""Log-probabilities of the candidates of a batch, with only the rows that predict them going through the vocabulary.

The projection to a vocabulary of 50,000 words costs more than a layer of a small model; of its B * T rows an option
needs one or two. A pre-hook on the output embeddings gathers those rows into one contiguous matrix, which works for
every architecture (a strided three-dimensional slice sent a bf16 CPU product down a path 28 times slower).
"""

import inspect

import torch
from torch import Tensor, nn

from xgblora.errors import InputError


class OptionScorer:
    """Scores the candidates of batches made by `Collator` with a causal language model.

    Args:
        model: a model with `get_output_embeddings()`; it gets a hook, which passes everything through outside `scores`.

    Raises:
        InputError: the model has no output embeddings.
    """

    def __init__(self, model: nn.Module):
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if head is None:
            raise InputError(f"{type(model).__name__} has no output embeddings: it is no language model")
        self._rows: Tensor | None = None
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        head.register_forward_pre_hook(self._gather)

    def scores(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Mean log-probability of the option tokens of each candidate: fp32 [B, C], -inf for padding candidates."""
        examples, sequences, length = batch["input_ids"].shape
        first = torch.arange(examples, device=batch["rows"].device).unsqueeze(1) * (sequences * length)
        mask = batch["attention_mask"].view(-1, length)
        arguments = {"input_ids": batch["input_ids"].view(-1, length), "attention_mask": mask, "use_cache": False}
        if self._takes_positions:
            arguments["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_(min=0)
        self._rows = (batch["rows"] + first).view(-1)
        try:
            logits = model(**arguments).logits.float()
        finally:
            self._rows = None
        return _mean_log_probabilities(logits.view(examples, -1, logits.shape[-1]), batch)

    def _gather(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._rows is None:
            return None
        hidden = inputs[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._rows).unsqueeze(0), *inputs[1:])


def _mean_log_probabilities(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """[B, R, V] logits of the gathered rows to [B, C] mean log-probabilities."""
    shape = batch["option_rows"].shape
    rows, targets = batch["option_rows"].flatten(1), batch["option_targets"].flatten(1)
    flat = rows * logits.shape[-1] + targets
    chosen = logits.flatten(1).gather(1, flat) - logits.logsumexp(dim=-1).gather(1, rows)
    mask = batch["option_mask"]
    tokens = mask.sum(dim=-1)
    mean = (chosen.view(shape) * mask).sum(dim=-1) / tokens.clamp(min=1)
    return mean.masked_fill(tokens == 0, float("-inf"))
