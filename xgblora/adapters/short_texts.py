"""Two short texts run through a model of whatever kind, so that it can be seen what its layers do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xgblora.eval_mode import in_eval_mode

# what a model may do with arguments that it does not expect
MISFITS = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError, NotImplementedError)
# enough for a mixture of experts to call most of them
_TEXTS, _TOKENS = 2, 12


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """In eval mode within the block, and afterwards as it was; what draws random numbers draws none of the caller's."""
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), in_eval_mode(model):
        yield


def arguments_of_short_texts(model: nn.Module) -> dict[str, Tensor] | None:
    """What `model` takes to read two texts of twelve tokens; None for a module that reads no token ids.

    An encoder and decoder gets them twice, once for each.
    """
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    count, weight = getattr(embeddings, "num_embeddings", None), getattr(embeddings, "weight", None)
    if count is None or weight is None or weight.is_meta:
        return None
    config = getattr(model, "config", None)
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "mask", "sep", "cls")}
    plain = [token for token in range(count) if token not in special] or [0]
    # a stride that shares no factor with the vocabulary would be best; texts need only be of different tokens
    ids = [plain[(7 * place + 3) % len(plain)] for place in range(_TEXTS * _TOKENS)]
    texts = torch.tensor(ids, device=weight.device).view(_TEXTS, _TOKENS)
    arguments = {"input_ids": texts}
    if getattr(config, "is_encoder_decoder", False):
        arguments["decoder_input_ids"] = texts.flip(0)
    return arguments


def outputs_of(model: nn.Module, arguments: dict[str, Tensor]) -> Tensor | None:
    """The first tensor that the model gives: logits, or the hidden states of a model without a head."""
    output = model(**arguments)
    if isinstance(output, Tensor):
        return output
    values = output.values() if hasattr(output, "values") else output
    return next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)
