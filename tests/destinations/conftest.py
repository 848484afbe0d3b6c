"""Adapters as destinations see them."""

import pytest
import torch

from xgblora.destinations import Adapter


@pytest.fixture
def adapter_of():
    """A function `(model class, configuration, rank, layers, base)` that makes an `Adapter` of a model without numbers.

    Without layers, of every linear layer called q_proj.
    """

    def make(model_class, config, *, rank=4, layers=None, base="some/model"):
        with torch.device("meta"):
            skeleton = model_class(config)
        if layers is None:
            layers = tuple(name for name, _ in skeleton.named_modules() if name.endswith("q_proj"))
        return Adapter(rank, layers, base, skeleton)

    return make
