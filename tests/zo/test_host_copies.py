"""The two halves of a step as a GPU would run them: no copy between host and device, nothing that decides on data.

Tensors without storage (device "meta") stand for those on a GPU: they go through the model, the scoring and the update,
every operation is looked at, and reading one is an error. A CUDA graph can hold neither of the two.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import xgblora
from xgblora.objectives.texts import CandidateObjective, classification, option_nll
from xgblora.scoring import Collator, EncodedExample, OptionScorer, option_scorer
from xgblora.scoring.option_rows import last_layer

GPU = torch.device("meta")


class Mixed(TorchDispatchMode):
    """Operations that have tensors on both sides."""

    def __init__(self):
        super().__init__()
        self.found, self.seen = [], 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        tensors = [leaf for leaf in tree_leaves((arguments, options, result)) if isinstance(leaf, torch.Tensor)]
        self.seen += 1
        if {tensor.device for tensor in tensors} - {GPU}:
            self.found.append(function.name())
        return result


class FromNumbers(TorchFunctionMode):
    """Calls that make tensors of numbers of the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function in (torch.tensor, torch.as_tensor) and not isinstance(arguments[0], torch.Tensor):
            self.found.append(function.__name__)
        return function(*arguments, **(options or {}))


@contextmanager
def finding_copies():
    """Gives a function that tells what copied between host and device since, and how many operations there were."""
    with Mixed() as mixed, FromNumbers() as numbers:
        yield lambda: (mixed.found + numbers.found, mixed.seen)


def on_gpu(batch):
    return {
        name: torch.empty_like(value, device=GPU) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


EXAMPLES = [
    EncodedExample(((5, 6, 7, 8),), ((0, 3),), (((0, 5),), ((0, 6),)), 0),
    EncodedExample(
        ((5, 6, 9), (5, 6, 4, 3)), ((0, 1), (0, 2), (1, 2), (1, 3)), (((0, 9), (1, 2)), ((2, 3), (3, 2))), 1
    ),
]

CHOICES = [
    EncodedExample(((5, 6, 7, 8),), ((0, 3),), (((0, 5),), ((0, 6),)), 0),
    EncodedExample(((5, 6, 9),), ((0, 2),), (((0, 5),), ((0, 6),)), 1),
]


def pack_and_spare(scorer, model, longest):
    """What the trials would find."""
    scorer.packs, scorer._rows.layer = True, last_layer(model)


def choose(scorer, model):
    scorer._chooses = True


@pytest.fixture
def without_numbers(monkeypatch):
    """What looks at numbers of a model before it trains is left out."""
    monkeypatch.setattr(option_scorer, "_is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(option_scorer, "can_be_tried", lambda model: True)
    monkeypatch.setattr(OptionScorer, "_try", pack_and_spare)
    monkeypatch.setattr(OptionScorer, "_try_to_choose", choose)
    monkeypatch.setattr("xgblora.zo.zero_order.same_losses", lambda *losses: True)
    monkeypatch.setattr("xgblora.adapters.adapter_set.uniform", lambda seed, size, **_: torch.zeros(size, device=GPU))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("form", ["packed", "padded", "choices"])
@torch.no_grad()
def test_losses_and_update_copy_nothing(make_model, without_numbers, form, attention):
    batch = on_gpu(Collator(1)(CHOICES if form == "choices" else EXAMPLES))
    if form == "padded":
        del batch["grid"]
    with GPU:
        model = make_model()
    model.set_attn_implementation(attention)
    objectives = [CandidateObjective(model, loss) for loss in (classification, option_nll)]
    adapters = xgblora.attach(model, alpha=2.0)
    for number, options in enumerate(
        (
            {"pairing": "paired", "directions": 2, "optimizer": "adam"},
            {"pairing": "sequential", "optimizer": "momentum"},
            {"pairing": "paired", "directions": 2, "two_sided": False, "normalise": True, "optimizer": "sign"},
        )
    ):
        zo = xgblora.ZeroOrder(adapters, objectives[number % 2], **options)
        with finding_copies() as found:
            losses, _ = zo._losses_of(batch)
            zo._apply({})
        copies, operations = found()
        assert losses.device == GPU
        assert copies == []
        assert operations > 100


@pytest.mark.parametrize("copy", [lambda: torch.tensor([1.0], device=GPU), lambda: torch.ones(2).to(GPU)])
def test_a_copy_would_be_found(copy):
    with finding_copies() as found:
        copy()
    assert found()[0]
