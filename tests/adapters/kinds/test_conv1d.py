"""GPT-2: layers that store their weight as [in_features, out_features]."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import xgblora
from xgblora import Rank1Linear, ops
from xgblora.ops.merge_rank1 import new_remainders

ALL = ["c_attn", "c_proj", "c_fc"]


def test_the_default_of_gpt2_is_its_fused_attention_projection(make_gpt2):
    adapters = xgblora.attach(make_gpt2(), alpha=2.0)
    assert list(adapters.layers) == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    assert {(layer.in_features, layer.out_features) for layer in adapters.layers.values()} == {(32, 96)}
    assert [weight.shape for weight in adapters.weights()] == [(96, 32)] * 2
    assert [(slot.in_features, slot.out_features) for slot in adapters.arena.slots] == [(32, 96)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 2])
def test_attaching_to_every_layer_changes_no_logit(make_gpt2, token_batch, dtype, rank):
    model, batch = make_gpt2(dtype=dtype), token_batch()
    with torch.no_grad():
        before = model(**batch).logits
        adapters = xgblora.attach(model, ALL, alpha=16.0, rank=rank)
        assert torch.equal(model(**batch).logits, before)
    assert len(adapters.layers) == 8


def test_the_weight_is_a_view_and_writing_it_writes_the_layer(make_base):
    base, x = make_base("Conv1D", 6, 4), torch.randn(3, 6)
    layer = Rank1Linear(base, alpha=1.0)
    assert layer.weight.untyped_storage().data_ptr() == base.weight.untyped_storage().data_ptr()
    assert layer.weight.stride() == (1, 4)
    before = layer(x)
    with torch.no_grad():
        layer.weight[2, 5] += 1.0
    assert base.weight[5, 2] == layer.weight[2, 5]
    assert torch.allclose(layer(x) - before, nn.functional.one_hot(torch.tensor(2), 4) * x[:, 5:], atol=1e-5)


def gradients(model, adapters, batch):
    for parameter in adapters.model.parameters():
        parameter.grad = None
    model(**batch, labels=batch["input_ids"]).loss.backward()
    return [grad for layer in adapters.layers.values() for grad in (layer.a.grad, layer.b.grad)]


def test_logits_and_gradients_are_those_of_the_fp64_model(make_gpt2, token_batch, randomise_adapters):
    model, batch = make_gpt2(), token_batch()
    adapters = xgblora.attach(model, ALL, alpha=2.0)
    randomise_adapters(adapters)
    wide = copy.deepcopy(model).double()
    # the copy's layers are not mergeable (fp64) and go past the fused operation: base and side path
    assert not any(layer.mergeable for layer in wide.modules() if isinstance(layer, Rank1Linear))
    with torch.no_grad():
        logits, expected = model(**batch).logits, wide(**batch).logits
    assert expected.dtype == torch.float64
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    ours = gradients(model, adapters, batch)
    wide(**batch, labels=batch["input_ids"]).loss.backward()
    theirs = [p.grad for m in wide.modules() if isinstance(m, Rank1Linear) for p in (m.a, m.b)]
    assert all(grad.abs().max() > 0 for grad in ours)
    for grad, other in zip(ours, theirs, strict=True):
        assert (grad - other).abs().max() < 1e-3 * other.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_operation_takes_the_transposed_view(dtype, groups):
    generator = torch.Generator().manual_seed(0)

    def normals(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    x, stored, bias, grad = normals(4, 2, 7), normals(7, 5), normals(5), normals(4, 2, 5)
    a, b = normals(groups, 7), normals(groups, 5)
    for name, arguments in (
        ("rank1_linear", (x, stored.T, bias, a, b, 0.5)),
        ("rank1_linear", (x, stored.T, bias, a.clone().requires_grad_(), b.clone().requires_grad_(), 0.5)),
        ("rank1_linear_backward", (grad, x, stored.T, a, b, 0.5, True)),
    ):
        operation = getattr(torch.ops.xgblora, name).default
        torch.library.opcheck(operation, arguments)
        straight = [a.contiguous() if isinstance(a, torch.Tensor) else a for a in arguments]
        ours, theirs = operation(*arguments), operation(*straight)
        for one, other in zip(*((y,) if isinstance(y, torch.Tensor) else y for y in (ours, theirs)), strict=True):
            assert one.is_contiguous()
            assert (one.double() - other.double()).abs().max() <= 8 * torch.finfo(dtype).eps * other.abs().max()


def test_a_layer_compiles_whole(make_base):
    layer, x = Rank1Linear(make_base("Conv1D"), alpha=2.0), torch.randn(4, 6, requires_grad=True)
    nn.init.normal_(layer.b)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))
    expected = torch.autograd.grad(layer(x).square().sum(), (x, layer.a, layer.b))
    for ours, theirs in zip(
        torch.autograd.grad(compiled(x).square().sum(), (x, layer.a, layer.b)), expected, strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounding", ["nearest", "remainder"])
def test_merging_into_the_views_is_merging_into_plain_weights(make_gpt2, randomise_adapters, dtype, rounding):
    model = make_gpt2(dtype=dtype)
    adapters = xgblora.attach(model, ALL, alpha=2.0)
    randomise_adapters(adapters)
    views = adapters.weights()
    plain = [weight.contiguous() for weight in views]
    pairs = [(layer.a[0].detach(), layer.b[0].detach()) for layer in adapters.layers.values()]
    remainders = []
    for weights in (views, plain):
        planes = new_remainders(weights) if rounding == "remainder" else None
        for _ in range(3):
            ops.merge_rank1_(weights, pairs, 2.0, rounding, remainders=planes)
        remainders.append(planes or [])
    assert all(torch.equal(view, weight) for view, weight in zip(views, plain, strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*remainders, strict=True))
    stored = [layer.base.weight for layer in adapters.layers.values()]
    assert all(torch.equal(weight.T, merged) for weight, merged in zip(stored, plain, strict=True))


def test_a_merge_changes_no_logit_and_rolling_back_gives_the_base_again(make_gpt2, token_batch, randomise_adapters):
    model, batch = make_gpt2(), token_batch()
    with torch.no_grad():
        base = model(**batch).logits
        adapters = xgblora.attach(model, ALL, alpha=2.0)
        booster = xgblora.Booster(adapters)
        randomise_adapters(adapters, std=0.2)
        adapted = model(**batch).logits
        booster.merge()
        assert (adapted - base).abs().max() > 0.1
        assert torch.allclose(model(**batch).logits, adapted, rtol=1e-4, atol=1e-4)
        booster.rollback(round=0)
        assert torch.equal(model(**batch).logits, base)


def test_recognising_conv1d_imports_no_transformers():
    code = (
        "import sys, torch, xgblora.adapters as adapters\n"
        "class Conv1D(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.nf, self.nx, self.bias = 4, 6, None\n"
        "        self.weight = torch.nn.Parameter(torch.randn(6, 4))\n"
        "layer = adapters.Rank1Linear(Conv1D(), alpha=1.0)\n"
        "assert layer(torch.ones(2, 6)).shape == (2, 4) and layer.mergeable\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
