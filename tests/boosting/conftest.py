"""Models in the middle of boosting."""

import pytest
import torch

import xgblora


@pytest.fixture
def trained(make_model, randomise_adapters):
    """A function that makes a model after one merge, with adapters trained further, and its booster."""

    def make(dtype=torch.float32):
        model = make_model(dtype=dtype)
        adapters = xgblora.attach(model, alpha=2.0)
        booster = xgblora.Booster(adapters)
        randomise_adapters(adapters, seed=0)
        booster.merge(step=1, epoch=0.5)
        randomise_adapters(adapters, seed=1)
        return model, adapters, booster

    return make
