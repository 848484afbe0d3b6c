"""Answers that a model writes: greedy, up to the end of the line, as MeZO has them.

They are written as `xgblora.scoring.greedy` does it; where that is not right for a model, by its own `generate`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from xgblora.errors import InputError
from xgblora.scoring.batches import batches_by_length, tokens_per_batch
from xgblora.scoring.encoding import option_starts
from xgblora.scoring.greedy import Ends, write, write_in_shares
from xgblora.scoring.greedy_ways import ways_for
from xgblora.scoring.live_rows import left_padded
from xgblora.scoring.together import ONE_LENGTH
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
        tokens: the most tokens of a forward, and of all rows that are written at a time, padding and answers among
            them; None: what suits the device.

    Raises:
        InputError: there is no room for a prompt.
    """
    check_room(max_length, max_new_tokens)
    texts = ids_of_prompts(tokenizer, prompts, max_length - max_new_tokens)
    return _answers(model, tokenizer, texts, max_new_tokens, tokens=tokens)


@torch.no_grad()
def write_after(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int,
    shares: int = 1,
) -> list[str]:
    """What the model writes after each of the prompts of one batch, see `generate_answers`.

    Args:
        input_ids, attention_mask: int64 [B, T], padded on the left.
        shares: how many adapters the model reads, each for its equal share of the rows.
    """
    rows = zip(input_ids.tolist(), attention_mask.sum(dim=1).tolist(), strict=True)
    texts = [row[len(row) - length :] for row, length in rows]
    return _answers(model, tokenizer, texts, max_new_tokens, shares=shares)


def _answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Sequence[int]],
    most: int,
    *,
    tokens: int | None = None,
    shares: int = 1,
) -> list[str]:
    ends = end_ids(tokenizer, model)
    end = Ends(ends | line_end_ids(tokenizer), most)
    longest = max(map(len, texts), default=0) + most
    ways = ways_for(model, longest if shares == 1 else 0)
    if ways is None:
        written = _by_its_own_way(model, tokenizer, texts, end, tokens, shares)
    elif shares == 1:
        written = write(model, texts, end, ways, tokens=tokens)
    else:
        written = write_in_shares(model, texts, end, ways, shares=shares)
    return [_answer(tokenizer, ids, ends) for ids in written]


def _answer(tokenizer: PreTrainedTokenizerBase, written: Sequence[int], ends: frozenset[int]) -> str:
    end = next((i for i, token in enumerate(written) if token in ends), len(written))
    return tokenizer.decode(written[:end], skip_special_tokens=True).partition("\n")[0].strip()


def _by_its_own_way(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Sequence[int]],
    ends: Ends,
    tokens: int | None,
    shares: int,
) -> list[list[int]]:
    """What `model.generate` writes: to prompts of one length at a time, so that there is no padding.

    Where several adapters are read, each by its share of the rows, all prompts are padded on the left.
    """
    padding = padding_id(tokenizer, rows_of_embeddings(model))
    ours = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=ends.most,
        eos_token_id=sorted(ends.tokens) or None,
        pad_token_id=padding,
    )
    device, written = next(model.parameters()).device, [[] for _ in texts]
    batches = (
        [range(len(texts))] if shares > 1 else _of_one_length(texts, ends.most, tokens or tokens_per_batch(device))
    )
    for places in batches:
        ids, mask = (tensor.to(device) for tensor in left_padded([texts[place] for place in places], padding))
        with _generating_as(model, ours):
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=ours)
        for place, row in zip(places, output[:, ids.shape[1] :].tolist(), strict=True):
            written[place] = row
    return written


def _of_one_length(texts: Sequence[Sequence[int]], more: int, tokens: int) -> Iterator[list[int]]:
    lengths = list(map(len, texts))
    for places in ONE_LENGTH.groups(lengths):
        yield from batches_by_length(places, lengths.__getitem__, tokens=tokens, extra=more)


@contextmanager
def _generating_as(model: nn.Module, ours: GenerationConfig) -> Iterator[None]:
    """Let `ours` be the generation configuration of `model`, which fills in what another one leaves open."""
    theirs = getattr(model, "generation_config", None)
    model.generation_config = ours
    try:
        yield
    finally:
        model.generation_config = theirs


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
    return ids_of_prompts(tokenizer, [prompt], max_length)[0]


def ids_of_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_length: int) -> list[list[int]]:
    """`prompt_ids` of each prompt, all tokenized in one call."""
    # transformers makes the list anew each time it is asked
    special = frozenset(tokenizer.all_special_ids)
    texts = []
    for prompt, (ids, _) in zip(prompts, option_starts(tokenizer, [("", prompt) for prompt in prompts]), strict=True):
        if not ids:
            ids = [_first_id(tokenizer, prompt)]
        kept = 1 if ids[0] in special else 0
        cut = max(0, len(ids) - max_length)
        texts.append(ids[:kept] + ids[kept + cut :])
    return texts


def _first_id(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    first = first_id(tokenizer)
    if first is None:
        raise InputError(f"the prompt {prompt!r} has no tokens, and the tokenizer no BOS or EOS to begin a text with")
    return first
