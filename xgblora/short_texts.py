"""Texts of plain tokens run through a model of whatever kind, so that it can be seen what it does."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xgblora.eval_mode import in_eval_mode

# what a model may do with arguments that it does not expect
MISFITS = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError, NotImplementedError)
# enough for a mixture of experts to call most of them
_TEXTS, _TOKENS = 2, 12
# tokens follow one another in steps of this, so that neighbours are no neighbours in the vocabulary
_STRIDE = 7


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """In eval mode within the block, and afterwards as it was; what draws random numbers draws none of the caller's."""
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), in_eval_mode(model):
        yield


def plain_tokens(model: nn.Module) -> Iterator[int] | None:
    """Token ids without end, none with a meaning of its own; None for a module that reads no token ids."""
    try:
        count = model.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        return None
    config = getattr(model, "config", None)
    names = ("pad", "bos", "eos", "mask", "sep", "cls", "decoder_start")
    special = {getattr(config, f"{name}_token_id", None) for name in names}
    few = [token for token in range(min(count, 1000)) if token not in special] or [0]
    return (few[(_STRIDE * place + place // len(few) + 3) % len(few)] for place in itertools.count())


def has_weights(model: nn.Module) -> bool:
    """Whether the embeddings have numbers, and are not on the meta device."""
    weight = getattr(model.get_input_embeddings(), "weight", None)
    return weight is not None and not weight.is_meta


def arguments_of_short_texts(model: nn.Module) -> dict[str, Tensor] | None:
    """What `model` takes to read two texts of twelve tokens; None for a module that reads no token ids.

    An encoder and decoder gets them twice, once for each.
    """
    tokens = plain_tokens(model)
    if tokens is None or not has_weights(model):
        return None
    ids = list(itertools.islice(tokens, _TEXTS * _TOKENS))
    texts = torch.tensor(ids, device=model.get_input_embeddings().weight.device).view(_TEXTS, _TOKENS)
    arguments = {"input_ids": texts}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        arguments["decoder_input_ids"] = texts.flip(0)
    return arguments


def outputs_of(model: nn.Module, arguments: dict[str, Tensor]) -> Tensor | None:
    """The first tensor that the model gives: logits, or the hidden states of a model without a head."""
    output = model(**arguments)
    if isinstance(output, Tensor):
        return output
    values = output.values() if hasattr(output, "values") else output
    return next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)
