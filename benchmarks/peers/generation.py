"""Greedy answers as `transformers` writes them: batches that are padded on the left and run until the last row ends."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from xgblora.scoring.batches import batches_by_length, tokens_per_batch
from xgblora.scoring.live_rows import left_padded
from xgblora.scoring.vocabulary import end_ids, line_end_ids


@torch.no_grad()
def batches_to_their_end(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, max_length: int, most: int
) -> list[str]:
    """The answers of up to `most` tokens to prompts of which the last `max_length - most` tokens are read."""
    texts = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    texts = [[*ids[:1], *ids[1:][-(max_length - most - 1) :]] for ids in texts]
    ends, answers = end_ids(tokenizer, model), [""] * len(texts)
    stops = sorted(ends | line_end_ids(tokenizer))
    greedily = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=stops, pad_token_id=1)
    tokens = tokens_per_batch(model.device)
    for places in batches_by_length(range(len(texts)), lambda place: len(texts[place]), tokens=tokens, extra=most):
        ids, mask = (tensor.to(model.device) for tensor in left_padded([texts[place] for place in places], 1))
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedily)
        for place, written in zip(places, output[:, ids.shape[1] :].tolist(), strict=True):
            end = next((i for i, token in enumerate(written) if token in ends), len(written))
            answers[place] = tokenizer.decode(written[:end], skip_special_tokens=True).partition("\n")[0].strip()
    return answers
