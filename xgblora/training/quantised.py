"""Quantised bases under transformers' trainer."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_FLAG = "_hf_peft_config_loaded"


@contextmanager
def adapters_are_known(model: nn.Module) -> Iterator[None]:
    """While this lasts, transformers knows that a quantised `model` has adapters: it refuses to train one without.

    It asks for PEFT's own, by this flag, as it makes a trainer. Afterwards the flag is what it was: where it is set,
    saving would write PEFT's adapters, and these alone.
    """
    if not getattr(model, "is_quantized", False):
        yield
        return
    before = getattr(model, _FLAG, False)
    setattr(model, _FLAG, True)
    try:
        yield
    finally:
        setattr(model, _FLAG, before)
