import pytest
import torch
from torch import nn

import xgblora
from xgblora import Rank1Linear
from xgblora.errors import InputError


def make_layer(rank=1, dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    layer = Rank1Linear(nn.Linear(6, 5, bias=bias).to(dtype), alpha=3.0, rank=rank)
    nn.init.normal_(layer.b)
    return layer


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_the_forward_is_loras(rank, bias):
    layer, x = make_layer(rank, bias=bias), torch.randn(2, 3, 6)
    # PEFT: base(x) + lora_B(lora_A(x)) * scaling, with lora_A.weight [r, K] and lora_B.weight [N, r]
    lora_a, lora_b = nn.Linear(6, rank, bias=False), nn.Linear(rank, 5, bias=False)
    lora_a.weight.data, lora_b.weight.data = layer.a.data, layer.b.data.T
    wanted = layer.base(x) + lora_b(lora_a(x)) * (3.0 / rank)
    assert torch.allclose(layer(x), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_gradients_are_loras(rank):
    layer, x = make_layer(rank), torch.randn(4, 6, requires_grad=True)
    gradients = torch.autograd.grad(layer(x).square().sum(), (x, layer.a, layer.b))
    plain = layer.base(x) + layer.scale * (x @ layer.a.T) @ layer.b
    wanted = torch.autograd.grad(plain.square().sum(), (x, layer.a, layer.b))
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [1, 3])
def test_16_bit_bases_give_16_bit_results_and_fp32_gradients(dtype, rank):
    layer = make_layer(rank, dtype)
    y = layer(torch.randn(4, 6).to(dtype))
    assert y.dtype == dtype
    y.float().sum().backward()
    assert layer.a.grad.dtype == layer.b.grad.dtype == torch.float32
    assert layer.base.weight.grad is None


def test_it_starts_as_its_base():
    base, x = nn.Linear(6, 5), torch.randn(3, 6)
    before = base(x)
    layer = Rank1Linear(base, alpha=3.0)
    assert torch.equal(layer(x), before)
    assert 0 < layer.a.abs().max() <= 6**-0.5
    assert not base.weight.requires_grad
    assert not base.bias.requires_grad


@pytest.mark.parametrize("rank", [1, 3])
def test_alone_it_starts_as_the_first_layer_that_is_attached_with_its_seed(rank):
    first, other = (Rank1Linear(nn.Linear(6, 5), alpha=3.0, rank=rank, seed=seed) for seed in (7, 8))
    adapters = xgblora.attach(nn.ModuleDict({"only": nn.Linear(6, 5)}), ["only"], alpha=3.0, rank=rank, seed=7)
    assert torch.equal(first.a, adapters.layers["only"].a)
    assert not torch.equal(first.a, other.a)


def test_torchs_generator_is_left_alone():
    base, before = nn.Linear(6, 5), torch.get_rng_state()
    layer = Rank1Linear(base, alpha=3.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert layer.a.abs().max() > 0


def test_converting_a_layer_alone_keeps_its_adapter_fp32():
    layer = make_layer().to(torch.bfloat16)
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    assert layer.a.dtype == layer.b.dtype == torch.float32


def test_only_linear_layers_are_taken():
    with pytest.raises(InputError, match=r"only linear layers can carry an adapter, not Conv1d: a module with"):
        Rank1Linear(nn.Conv1d(2, 2, 1), alpha=1.0)


def test_it_says_what_it_is():
    layer = make_layer(rank=2)
    assert (layer.rank, layer.in_features, layer.out_features) == (2, 6, 5)
    assert "rank=2, scale=1.5" in repr(layer)
