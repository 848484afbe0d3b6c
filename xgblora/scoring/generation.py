"""Answers that a model writes: greedy, up to the end of the line, as MeZO has them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from xgblora.errors import InputError
from xgblora.scoring.batches import batches_by_length, tokens_per_batch
from xgblora.scoring.encoding import option_start
from xgblora.scoring.vocabulary import end_ids, first_id, line_end_ids, padding_id, rows_of_embeddings

MAX_NEW_TOKENS = 50


@torch.no_grad()
def generate_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_length: int,
    max_new_tokens: int = MAX_NEW_TOKENS,
    tokens: int | None = None,
) -> list[str]:
    """What the model writes after each prompt, without white space around it.

    Args:
        model: a causal language model in eval mode.
        tokenizer: its tokenizer.
        prompts: texts; long ones lose tokens at their beginning, never the first one if it is a special token.
        max_length: the most tokens of prompt and answer together.
        max_new_tokens: the most tokens of an answer, which ends before the first line end or end of text.
        tokens: the most tokens of a batch, padding on the left and answers among them; None: what suits the device.

    Raises:
        InputError: there is no room for a prompt.
    """
    check_room(max_length, max_new_tokens)
    texts = [prompt_ids(tokenizer, prompt, max_length - max_new_tokens) for prompt in prompts]
    device = next(model.parameters()).device
    tokens = tokens or tokens_per_batch(device)
    pad = padding_id(tokenizer, rows_of_embeddings(model))
    answers = [""] * len(texts)
    lengths = list(map(len, texts))
    for places in batches_by_length(range(len(texts)), lengths.__getitem__, tokens=tokens, extra=max_new_tokens):
        ids, mask = left_padded([texts[place] for place in places], pad)
        batch = (ids.to(device), mask.to(device))
        written = write_after(model, tokenizer, *batch, max_new_tokens=max_new_tokens)
        for place, answer in zip(places, written, strict=True):
            answers[place] = answer
    return answers


@torch.no_grad()
def write_after(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int,
) -> list[str]:
    """What the model writes after each of the prompts of one batch, see `generate_answers`.

    Nothing of the model's own generation configuration counts (penalties, suppressed tokens, guidance, strings that
    stop), but the tokens that end a text.

    Args:
        input_ids, attention_mask: int64 [B, T], padded on the left.
    """
    ends, line_ends = end_ids(tokenizer, model), line_end_ids(tokenizer)
    ours = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends | line_ends) or None,
        pad_token_id=padding_id(tokenizer, rows_of_embeddings(model)),
    )
    with _generating_as(model, ours):
        output = model.generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=ours)
    answers = []
    for written in output[:, input_ids.shape[1] :].tolist():
        end = next((i for i, token in enumerate(written) if token in ends), len(written))
        answers.append(tokenizer.decode(written[:end], skip_special_tokens=True).partition("\n")[0].strip())
    return answers


@contextmanager
def _generating_as(model: nn.Module, ours: GenerationConfig) -> Iterator[None]:
    """Let `ours` be the generation configuration of `model`, which fills in what another one leaves open."""
    theirs = getattr(model, "generation_config", None)
    model.generation_config = ours
    try:
        yield
    finally:
        model.generation_config = theirs


def left_padded(texts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids of B texts and their attention mask, int64 [B, T]."""
    longest = max(map(len, texts))
    padding = [longest - len(text) for text in texts]
    ids = torch.tensor([[pad] * more + list(text) for text, more in zip(texts, padding, strict=True)])
    return ids, torch.tensor([[0] * more + [1] * (longest - more) for more in padding])


def check_room(max_length: int, max_new_tokens: int) -> None:
    """Raise InputError if a text of `max_length` tokens has no room for an answer of `max_new_tokens` and a prompt."""
    if max_new_tokens < 1 or max_length - max_new_tokens < 2:
        raise InputError(
            f"max_new_tokens={max_new_tokens}: must be 1 or more, and leave 2 or more of the {max_length} tokens of a "
            "text for the prompt"
        )


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, max_length: int) -> list[int]:
    """The ids of a prompt, at most `max_length`, without the special tokens that a tokenizer puts at the end.

    Raises:
        InputError: there are none.
    """
    ids, _ = option_start(tokenizer, "", prompt)
    if not ids:
        first = first_id(tokenizer)
        if first is None:
            raise InputError(
                f"the prompt {prompt!r} has no tokens, and the tokenizer no BOS or EOS to begin a text with"
            )
        ids = [first]
    kept = 1 if ids[0] in tokenizer.all_special_ids else 0
    cut = max(0, len(ids) - max_length)
    return ids[:kept] + ids[kept + cut :]
