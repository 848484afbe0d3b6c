"""Which layers can carry an adapter, and which of them a booster may be written into."""

import copy

import pytest
import torch
from torch import nn

import xgblora
from xgblora import Rank1Linear
from xgblora.adapters.base_layer import stored_tensors
from xgblora.adapters.identity import fingerprint
from xgblora.adapters.kinds.registry import kind_of
from xgblora.adapters.targets import candidate_layers
from xgblora.errors import InputError

MERGEABLE = ["Linear", "Conv1D", "OwnForward", "Dropping"]
NOT_MERGEABLE = ["Int8Linear", "PackedLinear", "Doubled", "RowNormalised", "Ternary", "Picky"]


def layer_of(base, *, rank=1, alpha=2.0):
    layer = Rank1Linear(base, alpha=alpha, rank=rank)
    nn.init.normal_(layer.b)
    return layer


@pytest.mark.parametrize("kind", MERGEABLE + NOT_MERGEABLE)
def test_every_linear_layer_can_carry_an_adapter(make_base, kind):
    base = make_base(kind, 6, 4)
    layer = Rank1Linear(base, alpha=2.0)
    assert (layer.in_features, layer.out_features) == kind_of(base).features(base) == (6, 4)
    assert (layer.a.shape, layer.b.shape) == ((1, 6), (1, 4))
    assert layer.mergeable == (kind in MERGEABLE)


@pytest.mark.parametrize("kind", MERGEABLE + NOT_MERGEABLE)
@pytest.mark.parametrize("rank", [1, 3])
def test_the_forward_is_that_of_the_base_and_the_low_rank_term(make_base, kind, rank):
    base, x = make_base(kind).eval(), torch.randn(2, 3, 6)
    before = base(x)
    layer = layer_of(base, rank=rank)
    expected = before + layer.scale * (x @ layer.a.T) @ layer.b
    assert (expected - before).abs().max() > 0.1
    assert torch.allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MERGEABLE)
def test_writing_into_the_weight_of_a_mergeable_layer_is_what_its_adapter_was(make_base, kind):
    layer, x = layer_of(make_base(kind).eval()), torch.randn(5, 6)
    assert layer.weight.shape == (4, 6)
    with torch.no_grad():
        adapted = layer(x)
        layer.weight.add_(layer.scale * layer.b.T @ layer.a)
        layer.b.zero_()
        assert torch.allclose(layer(x), adapted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MERGEABLE + NOT_MERGEABLE)
def test_finding_out_leaves_the_base_as_it_was(make_base, kind):
    base = make_base(kind).train()
    before = copy.deepcopy(base.state_dict())
    Rank1Linear(base, alpha=1.0)
    assert base.training
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("std", [1e-4, 0.02, 1.0])
@pytest.mark.parametrize("features", [(16, 16), (3, 700), (2048, 33)])
def test_the_finding_does_not_hang_on_the_dtype_or_the_size_of_the_weights(make_base, dtype, std, features):
    for kind in ("OwnForward", "RowNormalised", "Ternary", "Doubled"):
        base = make_base(kind, *features)
        nn.init.normal_(base.weight, std=std)
        assert Rank1Linear(base.to(dtype), alpha=1.0).mergeable == (kind == "OwnForward")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_weights_of_other_dtypes_are_not_mergeable(dtype):
    base = nn.Linear(6, 4).requires_grad_(False)
    base.weight = nn.Parameter(torch.zeros(4, 6).to(dtype), requires_grad=False)
    assert not Rank1Linear(base, alpha=1.0).mergeable


def test_a_parameter_subclass_is_not_mergeable():
    class Quantised(nn.Parameter):
        pass

    base = nn.Linear(6, 4).requires_grad_(False)
    base.weight = Quantised(torch.randn(4, 6), requires_grad=False)
    layer = layer_of(base)
    assert not layer.mergeable
    x = torch.randn(3, 6)
    assert torch.allclose(layer(x), base(x) + 2.0 * (x @ layer.a.T) @ layer.b, atol=1e-5)


def test_a_weight_that_is_computed_from_others_is_not_mergeable():
    for normalise in (torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.parametrizations.spectral_norm):
        base, x = normalise(nn.Linear(6, 4)), torch.randn(3, 6)
        base.eval()
        layer = layer_of(base)
        assert not layer.mergeable
        assert torch.allclose(layer(x), base(x) + 2.0 * (x @ layer.a.T) @ layer.b, atol=1e-5)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantised_weight_of_torch_that_is_a_method_is_not_mergeable():
    quantize_dynamic = pytest.importorskip("torch.ao.quantization").quantize_dynamic
    try:
        model = quantize_dynamic(nn.Sequential(nn.Linear(6, 4)).eval(), {nn.Linear})
    except RuntimeError as error:
        pytest.skip(f"this build of torch quantises nothing: {error}")
    x = torch.randn(3, 6)
    before = model(x)
    adapters = xgblora.attach(model, ["0"], alpha=2.0)
    assert not adapters.layers["0"].mergeable
    assert adapters.weights() == []
    assert adapters.compute_dtype == torch.float32
    assert torch.equal(model(x), before)
    assert "_packed_params._packed_params.0" in stored_tensors(model[0].base)
    other = quantize_dynamic(nn.Sequential(nn.Linear(6, 4)).eval(), {nn.Linear})
    assert fingerprint(adapters) != fingerprint(xgblora.attach(other, ["0"], alpha=2.0))


def test_hooks_and_a_forward_on_the_instance_are_respected():
    x = torch.randn(3, 6)
    for change in ("hook", "pre-hook", "forward"):
        base = nn.Linear(6, 4)
        layer = layer_of(base)
        plain = layer(x)
        if change == "hook":
            base.register_forward_hook(lambda module, inputs, output: output + 1.0)
        elif change == "pre-hook":
            base.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2.0,))
        else:
            # as accelerate does for a model that is spread over devices
            base.forward = lambda rows, weight=base.weight: nn.functional.linear(rows, weight) - 1.0
        update = 2.0 * (x @ layer.a.T) @ layer.b
        assert torch.allclose(layer(x), base(x) + update, atol=1e-5)
        assert not torch.allclose(layer(x), plain, atol=0.1)


@pytest.mark.parametrize("kind", ["Int8Linear", "PackedLinear", "OwnForward"])
@pytest.mark.parametrize("rank", [1, 2])
def test_gradients_flow_past_the_base(make_base, kind, rank):
    base = make_base(kind)
    layer, x = layer_of(base, rank=rank), torch.randn(4, 6, requires_grad=True)
    grad = torch.randn(4, 4)
    ours = torch.autograd.grad(layer(x), (x, layer.a, layer.b), grad)
    dense = base(torch.eye(6)).sub(base(torch.zeros(1, 6))).double()
    wide = [tensor.detach().double().requires_grad_() for tensor in (x, layer.a, layer.b)]
    y = wide[0] @ dense + layer.scale * (wide[0] @ wide[1].T) @ wide[2]
    for mine, other in zip(ours, torch.autograd.grad(y, wide, grad.double()), strict=True):
        assert torch.allclose(mine.double(), other, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize("kind", ["Int8Linear", "PackedLinear", "OwnForward", "Conv1D"])
def test_groups_of_rows_have_their_own_adapters(make_base, kind):
    base, x = make_base(kind), torch.randn(6, 6)
    layer = layer_of(base)
    a, b = torch.randn(3, 1, 6), torch.randn(3, 1, 4)
    with torch.no_grad():
        alone = []
        for group, rows in enumerate(x.view(3, 2, 6)):
            layer.live = a[group : group + 1], b[group : group + 1]
            alone.append(layer(rows))
        layer.live = a, b
        assert torch.allclose(layer(x), torch.cat(alone), atol=1e-5)
    assert not torch.allclose(alone[0], base(x[:2]), atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_stands_beside_a_16_bit_base_is_added_in_fp32(make_base, dtype):
    base, x = make_base("OwnForward", 64, 48).to(dtype), torch.randn(32, 64).to(dtype)
    layer = layer_of(base)
    with torch.no_grad():
        expected = base(x).double() + layer.scale * (x.double() @ layer.a.double().T) @ layer.b.double()
        y = layer(x)
    assert y.dtype == dtype
    # half a unit in the last place: one rounding
    assert ((y.double() - expected).abs() <= 0.51 * torch.finfo(dtype).eps * expected.abs() + 1e-6).all()


def test_autocast_leaves_the_side_path_in_fp32(make_base):
    layer, x = layer_of(make_base("Dropping", 64, 48).eval()), torch.randn(8, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        y, base = layer(x), layer.base(x)
    assert y.dtype == base.dtype == torch.bfloat16
    expected = base.double() + layer.scale * (x.double() @ layer.a.double().T) @ layer.b.double()
    assert ((y.double() - expected).abs() <= 0.51 * torch.finfo(torch.bfloat16).eps * expected.abs() + 1e-6).all()


def test_candidates_are_all_linear_layers_and_nothing_else(make_base):
    class Mlp(nn.Module):
        """Sizes of its own, no weight of its own."""

        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 6, 4
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 4)

    model = nn.ModuleDict({kind: make_base(kind) for kind in MERGEABLE + NOT_MERGEABLE})
    model["mlp"], model["conv"], model["norm"] = Mlp(), nn.Conv1d(6, 4, 1), nn.LayerNorm(6)
    model["bilinear"], model["embedding"] = nn.Bilinear(6, 6, 4), nn.Embedding(6, 4)
    assert list(candidate_layers(model)) == [*MERGEABLE, *NOT_MERGEABLE, "mlp.up", "mlp.down"]


def test_a_layer_inside_a_layer_is_part_of_it():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer = nn.Linear(6, 4)
            self.in_features, self.out_features = 6, 4

        @property
        def weight(self):
            return self.base_layer.weight

        def forward(self, x):
            return self.base_layer(x)

    model = nn.ModuleDict({"q_proj": Wrapper(), "q_proj_2": nn.Linear(6, 4)})
    assert list(candidate_layers(model)) == ["q_proj", "q_proj_2"]
    adapters = xgblora.attach(model, ".*", alpha=1.0)
    assert [layer.mergeable for layer in adapters.layers.values()] == [True, True]


@pytest.mark.parametrize(
    ("make", "target", "parent"),
    [
        (lambda: nn.MultiheadAttention(8, 2), "self_attn.out_proj", "MultiheadAttention"),
        (lambda: nn.TransformerEncoderLayer(8, 2), "self_attn.linear1", "TransformerEncoderLayer"),
        (lambda: nn.TransformerEncoderLayer(8, 2), "self_attn.self_attn.out_proj", "MultiheadAttention"),
    ],
)
def test_layers_whose_parent_never_calls_them_are_refused_by_name(make, target, parent):
    model = nn.ModuleDict({"self_attn": make(), "other": nn.Linear(2, 2)})
    with pytest.raises(InputError, match=rf"{target} is part of nn.{parent}, which reads its weight") as raised:
        xgblora.attach(model, [target], alpha=1.0)
    assert "\n" not in str(raised.value)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert list(xgblora.attach(model, ["other"], alpha=1.0).layers) == ["other"]


def test_the_part_of_an_attention_module_itself_is_refused():
    with pytest.raises(InputError, match=r"out_proj is part of nn\.MultiheadAttention"):
        xgblora.attach(nn.MultiheadAttention(8, 2), ["out_proj"], alpha=1.0)


def test_a_model_on_the_meta_device_cannot_be_merged_into():
    with torch.device("meta"):
        model = nn.ModuleDict({"only": nn.Linear(6, 4)})
    adapters = xgblora.attach(model, ["only"], alpha=1.0)
    assert not adapters.layers["only"].mergeable
    assert model["only"](torch.empty(3, 6, device="meta")).shape == (3, 4)
