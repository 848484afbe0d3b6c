"""What two short texts show of layers: which are called, what they give, and what else reads them."""

import pytest
import torch
from torch import nn

from xgblora.adapters.trial import faults_when_called, faults_when_changed


class Reader(nn.Module):
    """A model of token ids with one block, which is what the test is about."""

    def __init__(self, block: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        self.embeddings, self.block, self.head = nn.Embedding(20, 8), block, nn.Linear(8, 20)

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids):
        return self.head(self.block(self.embeddings(input_ids)))


class Block(nn.Module):
    """Layers that are called or not, read or not, and whose output goes somewhere or nowhere."""

    def __init__(self):
        super().__init__()
        names = ("sound", "in_place", "uncalled", "read", "read_alone", "nowhere")
        for name in names:
            setattr(self, name, nn.Linear(8, 8))
        self.pair = Pair(8, 8)

    def forward(self, x):
        self.nowhere(x)
        y = self.in_place(x)
        y += self.read(x) @ self.read.weight
        return self.sound(y) + x @ self.read_alone.weight + self.pair(x)[0]


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def test_which_layers_are_called_and_what_they_give():
    model = Reader(Block())
    faults = faults_when_called(model, layers_of(model))
    assert faults.keys() == {"block.uncalled", "block.read_alone", "block.pair"}
    assert faults["block.uncalled"] == "is never called where the model reads two short texts"
    assert faults["block.pair"] == "gives a tuple, not its product alone"


def test_what_else_reads_a_weight_and_what_leads_nowhere():
    model = Reader(Block())
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    called = {f"block.{name}": getattr(model.block, name) for name in ("sound", "in_place", "read", "nowhere")}
    faults = faults_when_changed(model, called)
    assert faults == {
        "block.read": "has a weight that more than its own forward reads",
        "block.nowhere": "leads nowhere: nothing that the model gives depends on it",
    }
    assert all(not module._forward_hooks for module in model.modules())
    for name, value in model.state_dict().items():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_trial_leaves_mode_and_generator_alone():
    model = Reader(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)))
    model.train()
    model.head.eval()
    state = torch.get_rng_state()
    assert faults_when_called(model, layers_of(model)) == faults_when_changed(model, layers_of(model)) == {}
    assert torch.equal(torch.get_rng_state(), state)
    assert model.block.training
    assert not model.head.training


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(2, 2)), Reader(nn.Linear(3, 3))])
def test_a_model_that_cannot_be_run_shows_nothing(model):
    assert faults_when_called(model, layers_of(model)) == faults_when_changed(model, layers_of(model)) == {}


def test_a_model_without_weights_shows_nothing():
    with torch.device("meta"):
        model = Reader(nn.Linear(8, 8))
    assert faults_when_called(model, layers_of(model)) == {}
