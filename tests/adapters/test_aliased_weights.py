"""A weight that another module uses too is refused by the names of both."""

import copy

import pytest
import torch
from torch import nn

import xgblora
from xgblora.adapters.aliased_weights import aliased_weights
from xgblora.errors import InputError


def refuse(model, target, message):
    before = list(model.named_modules())
    with pytest.raises(InputError, match=message) as raised:
        xgblora.attach(model, [target], alpha=1.0)
    assert "\n" not in str(raised.value)
    assert list(model.named_modules()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("model", ["make_opt", "make_llama", "make_gpt2"])
def test_a_head_that_is_tied_to_the_embeddings(request, model):
    model = request.getfixturevalue(model)(tie_word_embeddings=True)
    refuse(model, "lm_head", r"the weight of lm_head is shared with .*(embed_tokens|wte) and cannot be merged into")


def test_one_layer_under_two_names():
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"first": shared, "second": shared})
    refuse(model, "first", "the weight of first is shared with second")


def test_one_layer_without_a_parameter_under_two_names(make_base):
    shared = make_base("PackedLinear")
    refuse(nn.ModuleDict({"first": shared, "second": shared}), "first", "the weight of first is shared with second")


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("target", ["first", "second"])
def test_one_parameter_in_two_layers(device, target):
    model = nn.ModuleDict({"first": nn.Linear(3, 3), "second": nn.Linear(3, 3)}).to(device)
    model["second"].weight = model["first"].weight
    other = {"first": "second", "second": "first"}[target]
    refuse(model, target, f"the weight of {target} is shared with {other}")


def test_layers_on_the_meta_device_share_nothing():
    model = nn.ModuleDict({"first": nn.Linear(3, 3), "second": nn.Linear(3, 3)}).to("meta")
    assert len(xgblora.attach(model, ["first", "second"], alpha=1.0).layers) == 2


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("target", ["first", "second"])
def test_two_parameters_over_one_storage(make_base, kind, target):
    model = nn.ModuleDict({"first": make_base(kind, 4, 4), "between": nn.Linear(4, 4), "second": make_base(kind, 4, 4)})
    model["second"].weight.data = model["first"].weight.data.T
    assert model["second"].weight is not model["first"].weight
    other = {"first": "second", "second": "first"}[target]
    refuse(model, target, f"the weight of {target} is shared with {other}")


def test_conv1d_over_the_storage_of_an_embedding(make_base):
    model = nn.ModuleDict({"embedding": nn.Embedding(10, 4), "head": make_base("Conv1D", 4, 10)})
    model["head"].weight.data = model["embedding"].weight.data.T
    refuse(model, "head", "the weight of head is shared with embedding")


def test_a_weight_inside_a_larger_buffer():
    model = nn.ModuleDict({"packed": nn.Module(), "q": nn.Linear(4, 4)})
    model["packed"].register_buffer("qkv", torch.randn(12, 4))
    model["q"].weight.data = model["packed"].qkv[4:8]
    refuse(model, "q", "the weight of q is shared with packed")


def test_neighbours_in_one_storage_share_nothing():
    # as a checkpoint that is mapped into memory, or one flat tensor of all parameters, lays them out
    flat = torch.randn(3 * 16)
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in "qkv"})
    for index, layer in enumerate(model.values()):
        layer.weight.data = flat[16 * index : 16 * index + 16].view(4, 4)
    assert len(xgblora.attach(model, ["q", "k", "v"], alpha=1.0).layers) == 3


def test_what_is_never_written_may_be_shared(make_base):
    model = nn.ModuleDict({name: make_base("Int8Linear") for name in ("first", "second")})
    model["second"].scale = model["first"].scale
    model["second"].bias = model["first"].bias
    assert len(xgblora.attach(model, ["first", "second"], alpha=1.0).layers) == 2


def test_sharing_between_layers_without_adapters_does_no_harm(make_opt):
    model = make_opt(tie_word_embeddings=True)
    assert list(aliased_weights(model, ["model.decoder.layers.0.fc1"])) == []
    assert len(xgblora.attach(model, alpha=1.0).layers) == 4


def test_an_untied_copy_is_not_shared(make_gpt2):
    model = make_gpt2(tie_word_embeddings=True)
    model.lm_head = copy.deepcopy(model.lm_head)
    assert list(xgblora.attach(model, ["lm_head"], alpha=1.0).layers) == ["lm_head"]
