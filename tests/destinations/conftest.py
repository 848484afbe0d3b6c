"""Adapters as destinations see them."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import xgblora
from xgblora import demo
from xgblora.boosting.finish import finish
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


class LogitsOnly(nn.Module):
    """A model from `input_ids` [B, T] to logits and nothing else, as exporters of graphs want it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids=input_ids, use_cache=False).logits


@pytest.fixture
def logits_only():
    """The class `LogitsOnly`."""
    return LogitsOnly


@pytest.fixture
def merged_folder(shared_model, randomise_adapters, tmp_path):
    """A function `(name, dtype)`: the folder of a shared model, or of the demonstration, with a booster merged."""

    def export(name, dtype=torch.float32):
        folder = demo.flags()["model_name"] if name == "the demonstration" else shared_model(name)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        adapters = xgblora.attach(model, alpha=2.0)
        randomise_adapters(adapters, std=0.02)
        finish(adapters, xgblora.Booster(adapters), step=1, epoch=1.0)
        xgblora.export_merged(model, tmp_path / "merged", tokenizer=AutoTokenizer.from_pretrained(folder))
        return tmp_path / "merged"

    return export


@pytest.fixture
def boost(randomise_adapters):
    """A function `(model, target modules, rounds, std)` that gives the ledger of a model after some rounds.

    The targets are parts of the names of linear layers.
    """

    def make(model, targets, *, rounds=3, std=0.1):
        names = [name for name, _ in model.named_modules() if any(target in name for target in targets)]
        layers = [name for name in names if type(model.get_submodule(name)).__name__ in ("Linear", "Conv1D")]
        adapters = xgblora.attach(model, layers, alpha=2.0)
        booster = xgblora.Booster(adapters)
        for round in range(rounds):
            randomise_adapters(adapters, seed=round, std=std)
            booster.merge(step=round + 1)
        return booster.ledger

    return make
