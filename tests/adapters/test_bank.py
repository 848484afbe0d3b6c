"""Boosters beside a weight that cannot be written: `y = base(x) + sum_t (x . a_t) b_t + scale (x . a) b`."""

import copy
import pickle

import pytest
import torch
from torch import nn

import xgblora
from xgblora import Rank1Linear
from xgblora.errors import InputError


@pytest.fixture
def banked(make_base):
    """A function `(kind, boosters, **sizes)` that makes a layer with an adapter and a bank that matter."""

    def make(kind="Int8Linear", boosters=5, in_features=6, out_features=4, rank=1) -> Rank1Linear:
        layer = Rank1Linear(make_base(kind, in_features, out_features), alpha=0.5, rank=rank)
        nn.init.normal_(layer.b)
        layer.extend_bank(torch.randn(boosters, in_features), torch.randn(boosters, out_features))
        return layer

    return make


def dense(layer, x, base):
    """The formula in fp64, from the output of the base."""
    a, b = (part.double() for part in layer.bank)
    adapter = layer.scale * (x.double() @ layer.a.double().T) @ layer.b.double()
    return base.double() + sum(torch.outer(x.double() @ a[t], b[t]) for t in range(len(a))) + adapter


@pytest.mark.parametrize("kind", ["Linear", "Conv1D", "OwnForward", "Int8Linear", "PackedLinear"])
@pytest.mark.parametrize("rank", [1, 2])
def test_the_forward_is_the_formula(banked, kind, rank):
    layer, x = banked(kind, rank=rank), torch.randn(7, 6)
    with torch.no_grad():
        assert torch.allclose(layer(x).double(), dense(layer, x, layer.base(x)), rtol=1e-5, atol=1e-5)
        assert torch.allclose(layer(x.view(1, 7, 6))[0], layer(x), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("boosters", [1, 24, 200])
def test_it_is_as_accurate_as_one_dense_weight_in_the_same_dtype(banked, dtype, boosters):
    layer = banked("Linear", boosters, 96, 64)
    layer.bank = tuple(part * 0.1 for part in layer.bank)
    weight = layer.base.weight.data.to(dtype)
    layer.base.weight.data, layer.base.bias.data = weight, torch.zeros(64, dtype=dtype)
    a, b = (part.double() for part in layer.bank)
    total = weight.double() + b.T @ a + layer.scale * layer.b.double().T @ layer.a.double()
    x = torch.randn(50, 96).to(dtype)
    with torch.no_grad():
        error = (layer(x).double() - x.double() @ total.T).abs().max()
        eager = (x @ total.to(dtype).T - x.double() @ total.T).abs().max()
    assert layer(x).dtype == dtype
    assert error < 2 * eager


def test_many_boosters_that_cancel_leave_no_trace(banked):
    # one rounding for all: added one after another in bf16, the large terms would drown the base
    layer, x = banked("Linear"), torch.randn(5, 6).bfloat16()
    layer.base.bfloat16()
    layer.b.data.zero_()
    layer.clear_bank()
    a, b = torch.randn(1, 6), 300 * torch.randn(1, 4)
    with torch.no_grad():
        before = layer(x)
        layer.extend_bank(torch.cat((a, a)), torch.cat((b, -b)))
        assert torch.equal(layer(x), before)


def test_the_bank_grows_and_is_cleared(make_base):
    layer, x = Rank1Linear(make_base("Int8Linear"), alpha=1.0), torch.randn(3, 6)
    assert layer.bank is None
    before = layer(x)
    a, b = torch.randn(3, 6), torch.randn(3, 4)
    layer.extend_bank(a[:1], b[:1])
    layer.extend_bank(a[1:], b[1:])
    assert [part.dtype for part in layer.bank] == [torch.float32] * 2
    assert torch.equal(layer.bank[0], a)
    assert torch.equal(layer.bank[1], b)
    assert torch.allclose(layer(x), before + (x @ a.T) @ b, atol=1e-5)
    a.zero_()
    assert layer.bank[0].abs().min() > 0, "a copy, never a view into a ledger"
    layer.clear_bank()
    assert layer.bank is None
    assert torch.equal(layer(x), before)


def test_the_first_booster_is_copied_too(make_base):
    layer = Rank1Linear(make_base("Int8Linear"), alpha=1.0)
    layer.extend_bank(layer.a.detach(), layer.b.detach() + 1.0)
    layer.a.data.zero_()
    assert layer.bank[0].abs().min() > 0


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (
            torch.zeros(2, 5),
            torch.zeros(2, 4),
            r"b \(2, 4\) do not fit a layer of 6 inputs and 4 outputs",
        ),
        (torch.zeros(2, 6), torch.zeros(1, 4), r"do not fit"),
        (torch.zeros(6), torch.zeros(4), r"do not fit"),
        (torch.zeros(2, 6).half(), torch.zeros(2, 4), r"boosters in a bank are fp32, not torch.float16"),
    ],
)
def test_boosters_that_do_not_fit_are_refused(make_base, a, b, message):
    layer = Rank1Linear(make_base("Int8Linear"), alpha=1.0)
    with pytest.raises(InputError, match=message):
        layer.extend_bank(a, b)
    assert layer.bank is None


def test_the_bank_is_shared_by_all_groups(banked):
    layer, x = banked(), torch.randn(6, 6)
    a, b = torch.randn(2, 1, 6), torch.randn(2, 1, 4)
    with torch.no_grad():
        alone = []
        for group, rows in enumerate(x.view(2, 3, 6)):
            layer.live = a[group : group + 1], b[group : group + 1]
            alone.append(layer(rows))
        layer.live = a, b
        assert torch.allclose(layer(x), torch.cat(alone), atol=1e-5)
        bankless = copy.copy(layer)
        bankless.live = layer.live
        bankless.clear_bank()
        banks = (x @ layer.bank[0].T) @ layer.bank[1]
        assert torch.allclose(layer(x) - bankless(x), banks, atol=1e-4)


def test_gradients_know_the_bank(banked):
    layer, x = banked(), torch.randn(3, 6, requires_grad=True)
    layer(x).sum().backward()
    layer.a.grad, with_bank = None, x.grad.clone()
    x.grad = None
    bank, layer.bank = layer.bank, None
    layer(x).sum().backward()
    assert torch.allclose(with_bank - x.grad, (bank[1].sum(1) @ bank[0]).expand(3, 6), atol=1e-4)
    assert not any(part.requires_grad for part in bank)


def test_the_bank_is_no_parameter_and_not_in_the_state_dict(banked):
    layer = banked()
    assert {name for name, _ in layer.named_parameters()} == {"a", "b", "base.bias"}
    assert {name for name in layer.state_dict() if not name.startswith("base.")} == {"a", "b"}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_keep_the_bank(banked, duplicate):
    # pickle needs a class that it can import
    layer, x = banked("Linear"), torch.randn(3, 6)
    twin = duplicate(layer)
    assert torch.equal(twin(x), layer(x))
    expected = twin(x)
    layer.bank[0].zero_()
    assert torch.equal(twin(x), expected)


def test_a_shallow_copy_has_a_bank_of_its_own_from_then_on(banked):
    layer = banked(boosters=2)
    twin = copy.copy(layer)
    twin.extend_bank(torch.ones(1, 6), torch.ones(1, 4))
    assert (len(layer.bank[0]), len(twin.bank[0])) == (2, 3)


def test_converting_keeps_the_bank_fp32(banked):
    layer = banked("Linear").to(torch.bfloat16)
    assert {part.dtype for part in layer.bank} == {torch.float32}


def test_boosters_come_to_the_device_of_the_layer(make_base):
    layer = Rank1Linear(make_base("Int8Linear").to("meta"), alpha=1.0)
    layer.extend_bank(torch.ones(1, 6), torch.ones(1, 4))
    layer.extend_bank(torch.ones(1, 6), torch.ones(1, 4))
    assert {part.device.type for part in layer.bank} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_bank_follows_the_layer_to_another_device(banked):
    layer, x = banked(), torch.randn(3, 6)
    before = layer(x)
    layer.cuda()
    assert {tensor.device.type for tensor in (*layer.bank, layer.a, layer.b, layer.base.weight)} == {"cuda"}
    assert torch.allclose(layer(x.cuda()).cpu(), before, atol=1e-5)


@pytest.mark.parametrize("kind", ["Int8Linear", "PackedLinear", "Linear", "Conv1D"])
def test_a_banked_layer_compiles_whole(banked, kind):
    layer, x = banked(kind), torch.randn(4, 6, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), layer(x), rtol=1e-6, atol=1e-6)
    expected = torch.autograd.grad(layer(x).square().sum(), (x, layer.a, layer.b))
    for ours, theirs in zip(
        torch.autograd.grad(compiled(x).square().sum(), (x, layer.a, layer.b)), expected, strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    layer.extend_bank(torch.ones(1, 6), torch.ones(1, 4))
    assert torch.allclose(compiled(x), layer(x), rtol=1e-6, atol=1e-6), "a bank that has grown"


@pytest.fixture
def quantised(make_base):
    """A model of a plain, a quantised and a packed layer."""
    model = nn.Sequential(make_base("Linear", 6, 8), nn.Tanh(), make_base("Int8Linear", 8, 8), nn.Tanh())
    return model.append(make_base("PackedLinear", 8, 4))


def test_a_merge_into_banks_and_weights_changes_no_output(quantised, randomise_adapters):
    x = torch.randn(5, 6)
    adapters = xgblora.attach(quantised, ["0", "2", "4"], alpha=2.0)
    assert [layer.mergeable for layer in adapters.layers.values()] == [True, False, False]
    assert [weight.shape for weight in adapters.weights()] == [(8, 6)]
    booster = xgblora.Booster(adapters)
    with torch.no_grad():
        base = quantised(x)
        for round in (1, 2):
            randomise_adapters(adapters, seed=round, std=0.3)
            before = quantised(x)
            booster.merge()
            assert torch.allclose(quantised(x), before, rtol=1e-4, atol=1e-5)
        assert (before - base).abs().max() > 0.05
        assert [layer.bank and len(layer.bank[0]) for layer in adapters.layers.values()] == [None, 2, 2]
        booster.rollback(round=0)
        assert torch.equal(quantised(x), base)


def test_folding_what_no_weight_can_take_is_refused_and_changes_nothing(quantised, randomise_adapters):
    x = torch.randn(5, 6)
    base = quantised(x)
    adapters = xgblora.attach(quantised, ["0", "2", "4"], alpha=2.0)
    randomise_adapters(adapters)
    before = quantised(x)
    with pytest.raises(InputError, match=r"^2: its boosters cannot be folded into a Int8Linear of int8") as raised:
        xgblora.detach(quantised)
    assert "xgblora-export RUN --format peft" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert torch.equal(quantised(x), before)
    xgblora.detach(quantised, fold=False)
    assert torch.equal(quantised(x), base)


def test_a_bank_alone_is_refused_too_and_an_idle_adapter_is_not(quantised):
    adapters = xgblora.attach(quantised, ["0", "4"], alpha=2.0)
    adapters.layers["4"].extend_bank(torch.ones(1, 8), torch.ones(1, 4))
    with pytest.raises(InputError, match=r"^4: its boosters cannot be folded into a PackedLinear of uint8"):
        xgblora.detach(quantised, fold=True)
    adapters.layers["4"].clear_bank()
    xgblora.detach(quantised, fold=True)
    assert not any(isinstance(module, Rank1Linear) for module in quantised.modules())


def test_the_compute_dtype_of_quantised_models(make_base):
    def dtype_of(model, **attributes):
        for name, value in attributes.items():
            setattr(model["q"], name, value)
        return xgblora.attach(model, ["q"], alpha=1.0).compute_dtype

    def model(dtype, kind="Int8Linear"):
        return nn.ModuleDict({"q": make_base(kind), "norm": nn.LayerNorm(6)}).to(dtype)

    assert dtype_of(model(torch.bfloat16)) == torch.bfloat16
    assert dtype_of(model(torch.float16, "PackedLinear")) == torch.float16
    assert dtype_of(model(torch.float32), compute_dtype=torch.bfloat16) == torch.bfloat16
    assert dtype_of(model(torch.float32), compute_dtype=None) == torch.float32
    assert dtype_of(nn.ModuleDict({"q": make_base("PackedLinear")})) == torch.float32
    assert dtype_of(model(torch.bfloat16, "Doubled"), compute_dtype=torch.float32) == torch.bfloat16


def test_bitsandbytes_layers_keep_their_boosters_beside_them():
    bnb = pytest.importorskip("bitsandbytes")
    for make in (
        lambda: bnb.nn.Linear8bitLt(64, 128, has_fp16_weights=False),
        lambda: bnb.nn.Linear4bit(64, 128, compute_dtype=torch.bfloat16, quant_type="nf4"),
    ):
        model, x = nn.ModuleDict({"q": make()}).to("cpu").eval(), torch.randn(5, 64).bfloat16()
        before = model["q"](x)
        layer = xgblora.attach(model, ["q"], alpha=2.0).layers["q"]
        assert not layer.mergeable
        assert torch.equal(layer(x), before)
        nn.init.normal_(layer.b)
        layer.extend_bank(torch.randn(3, 64), torch.randn(3, 128))
        layer(x).float().sum().backward()
        assert layer.a.grad.abs().max() > 0
        y = layer(x)
        assert y.dtype == torch.bfloat16
        expected = dense(layer, x, layer.base(x))
        assert ((y - expected).abs() <= 0.51 * torch.finfo(torch.bfloat16).eps * expected.abs() + 1e-6).all()
