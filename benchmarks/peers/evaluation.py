"""MeZO's evaluation: a forward a candidate."""

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from xgblora.scoring.encoding import option_start
from xgblora.tasks import Sample


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
