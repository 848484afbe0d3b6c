"""Masked language models: candidates are scored at mask tokens that stand in their place, as MeZO's medium models do.

A candidate of n tokens is n masks in its text, and its score the mean log-probability of its tokens there. Candidates
of as many tokens after one prompt are one text. What follows the answer, such as the end of a text, stays.
"""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from xgblora.errors import InputError
from xgblora.scoring.encoding import EncodedExample, option_starts, shortened
from xgblora.tasks.sample import Sample


def fills_masks(model: nn.Module) -> bool:
    """Whether a model is a masked language model by its class."""
    return names_masked(type(model).__name__)


def without_cache(model: nn.Module) -> dict[str, bool]:
    """What keeps a model from filling a cache: a masked language model has none, nor an argument for it."""
    return {} if fills_masks(model) else {"use_cache": False}


def mask_token(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that stands for an answer to `model`; None: it is no masked language model.

    Raises:
        InputError: it is one, and the tokenizer has no mask.
    """
    if not fills_masks(model):
        return None
    if tokenizer.mask_token_id is None:
        raise InputError(f"{type(model).__name__} fills masks, and its tokenizer has no mask token")
    return tokenizer.mask_token_id


def encode_with_masks(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    mask: int,
    *,
    max_length: int,
    only_right: bool = False,
) -> list[EncodedExample]:
    """Encode samples for a masked language model; arguments and errors as of `scoring.encode_all`."""
    texts = [[sample.candidates[sample.label]] if only_right else sample.candidates for sample in samples]
    asked = [(sample.prompt, text) for sample, of_one in zip(samples, texts, strict=True) for text in of_one]
    starts = iter(option_starts(tokenizer, asked))
    special = frozenset(tokenizer.all_special_ids)
    examples = []
    for sample, of_one in zip(samples, texts, strict=True):
        encodings = []
        for text in of_one:
            ids, start = next(starts)
            if start == len(ids):
                raise InputError(f"{sample.origin}: the option {text[len(sample.prompt) :]!r} is empty")
            # what a tokenizer puts at the end of every text
            tail = tokenizer(text)["input_ids"][len(ids) :]
            encodings.append((*shortened(ids, start, special, max_length - len(tail), sample.origin), tail))
        examples.append(_with_masks(encodings, mask, 0 if only_right else sample.label))
    return examples


def _with_masks(encodings: list[tuple[list[int], int, list[int]]], mask: int, label: int) -> EncodedExample:
    sequences: dict[tuple[int, ...], int] = {}
    rows: dict[tuple[int, int], int] = {}
    options = []
    for ids, start, tail in encodings:
        masked = (*ids[:start], *[mask] * (len(ids) - start), *tail)
        sequence = sequences.setdefault(masked, len(sequences))
        options.append(tuple((rows.setdefault((sequence, i), len(rows)), ids[i]) for i in range(start, len(ids))))
    return EncodedExample(tuple(sequences), tuple(rows), tuple(options), label)


def names_masked(architecture: str) -> bool:
    """Whether a class of transformers, by its name, is a masked language model."""
    others = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    return architecture in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values() and not any(
        architecture in names.values() for names in others
    )
