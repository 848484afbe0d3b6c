"""A kind of layer from outside the package: recognised, trained, merged into, taken off, exported, or refused."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import xgblora
from xgblora import Rank1Linear
from xgblora.adapters import LayerKind, register_kind
from xgblora.adapters.kinds import registry
from xgblora.adapters.targets import candidate_layers
from xgblora.boosting.peft_adapter import CONFIG
from xgblora.errors import InputError
from xgblora.replaying import rebuild


class Blocks(nn.Module):
    """A linear layer that stores its weight as blocks of outputs, [blocks, K, N / blocks], and says no features."""

    def __init__(self, inputs, outputs, blocks=2):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(blocks, inputs, outputs // blocks))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.cat([x @ block for block in self.kernel], dim=-1) + self.bias


class Kernel(nn.Module):
    """A linear layer with its weight as [K, N] under a name of its own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.kernel + self.bias


class Experts(nn.Module):
    """A linear layer an expert, [E, N, K]; every row of the input names its own."""

    def __init__(self, experts, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, outputs, inputs))

    def forward(self, x, expert):
        return torch.einsum("mk,mnk->mn", x, self.weight[expert])


class AdaptedExperts(Rank1Linear):
    """`Experts` with an adapter an expert."""

    def __init__(self, base, *, alpha, rank=1, **options):
        super().__init__(base, alpha=alpha, rank=rank * len(base.weight), **options)
        self.scale = alpha / rank

    @property
    def matrices(self):
        return self.weight.unbind()

    def forward(self, x, expert):
        a, b = self.live if self.live is not None else (self.a.unsqueeze(0), self.b.unsqueeze(0))
        a, b = (part.unflatten(1, (len(self.base.weight), -1)) for part in (a, b))
        # row m of group g, by its own expert
        group = torch.arange(len(x)) // (len(x) // len(a))
        dots = torch.einsum("mk,mrk->mr", x, a[group, expert])
        return self.base(x, expert) + self.scale * torch.einsum("mr,mrn->mn", dots, b[group, expert])


def kernel_features(module):
    return tuple(module.kernel.shape) if isinstance(module, Kernel) else None


def experts_features(module):
    return (module.weight.shape[2], module.weight.shape[1]) if isinstance(module, Experts) else None


def yes(module):
    return True


KERNEL = LayerKind("a toy kernel", kernel_features, weight_name="kernel", matrix=torch.t)
EXPERTS = LayerKind("toy experts", experts_features, takes_writes=yes, layer=AdaptedExperts)


class Classifier(nn.Module):
    """Two layers, of which the first is the toy."""

    def __init__(self, first):
        super().__init__()
        self.first, self.second = first, nn.Linear(8, 3)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Mixture(nn.Module):
    """Experts before a linear layer; a row is for the expert that its first number says."""

    def __init__(self):
        super().__init__()
        self.experts, self.second = Experts(3, 6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.second(torch.tanh(self.experts(x, (x[:, 0] * 100).long() % 3)))


@pytest.fixture
def register(monkeypatch):
    """`register_kind` for this test alone."""
    monkeypatch.setattr(registry, "_KINDS", list(registry._KINDS))
    return register_kind


@pytest.fixture(params=["kernel", "kernel that only multiplies", "experts"])
def make_model(request, register):
    """A function that makes the same model again, of a toy kind that is registered, and that kind's layer."""
    multiplies = {"multiplies": yes} if "only" in request.param else {}
    register(EXPERTS if request.param == "experts" else replace(KERNEL, **multiplies))

    def make():
        torch.manual_seed(0)
        return Mixture() if request.param == "experts" else Classifier(Kernel(6, 8))

    return make


def batch(examples=12):
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(examples, 6, generator=generator), "y": torch.arange(examples) % 3}


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def attach(model):
    return xgblora.attach(model, ["experts" if hasattr(model, "experts") else "first", "second"], alpha=2.0, rank=2)


def test_without_its_kind_the_layer_is_no_candidate():
    model = Classifier(Kernel(6, 8))
    assert list(candidate_layers(model)) == ["second"]
    with pytest.raises(InputError, match="only linear layers can carry an adapter, not Kernel"):
        Rank1Linear(model.first, alpha=1.0)


def test_attaching_changes_nothing_and_an_adapter_is_a_low_rank_term(make_model, randomise_adapters):
    model, x = make_model(), batch()["x"]
    before = model(x)
    adapters = attach(model)
    first = next(iter(adapters.layers.values()))
    assert torch.allclose(model(x), before, rtol=1e-5, atol=1e-5)
    assert (first.in_features, first.out_features) == (6, 8)
    assert all(layer.mergeable for layer in adapters.layers.values())
    assert all(matrix.shape == (8, 6) for matrix in first.matrices)
    randomise_adapters(adapters)
    adapted = model(x)
    assert not torch.allclose(adapted, before, atol=1e-2)
    xgblora.detach(model)
    assert torch.allclose(model(x), adapted, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, Rank1Linear) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("pairing", ["paired", "sequential"])
def test_zeroth_order_steps_a_merge_and_a_rollback(make_model, pairing):
    model = make_model()
    adapters = attach(model)
    booster = xgblora.Booster(adapters)
    base = [weight.clone() for weight in adapters.weights()]
    zo = xgblora.ZeroOrder(adapters, loss_of, lr=1e-2, directions=2, pairing=pairing, seed=3)
    start = adapters.arena.master.clone()
    results = [zo.step(batch()) for _ in range(3)]
    assert all(result.projected_grad.abs().min() > 0 for result in results)
    assert not torch.equal(adapters.arena.master, start)
    with torch.no_grad():
        trained = model(batch()["x"])
        booster.merge()
        assert torch.allclose(model(batch()["x"]), trained, rtol=1e-4, atol=1e-5)
        merged = [weight.clone() for weight in adapters.weights()]
        assert all(not torch.equal(ours, theirs) for ours, theirs in zip(merged, base, strict=True))
        twin = rebuild(make_model(), booster.ledger).adapters
        assert all(map(torch.equal, twin.weights(), merged))
        booster.rollback(round=0)
        assert all(map(torch.equal, adapters.weights(), base))


def test_stacked_and_single_forwards_give_the_same_estimate(make_model):
    losses = []
    for pairing in ("paired", "sequential"):
        zo = xgblora.ZeroOrder(attach(make_model()), loss_of, eps=1e-2, pairing=pairing)
        losses.append(zo.step(batch()).projected_grad)
    assert torch.allclose(*losses, rtol=1e-3, atol=1e-4)


def test_backpropagation_reaches_its_adapters(make_model, randomise_adapters):
    model = make_model()
    adapters = attach(model)
    randomise_adapters(adapters)
    loss_of(model, batch()).mean().backward()
    for layer in adapters.layers.values():
        assert layer.a.grad.abs().max() > 0
        assert layer.b.grad.abs().max() > 0


def test_a_layer_that_only_multiplies_runs_the_fused_operation(register, monkeypatch):
    calls = []
    operation = torch.ops.xgblora.rank1_linear
    monkeypatch.setattr(torch.ops.xgblora, "rank1_linear", lambda *given: calls.append(given) or operation(*given))
    for kind, runs in ((replace(KERNEL, multiplies=yes), 1), (KERNEL, 0)):
        monkeypatch.setattr(registry, "_KINDS", [kind])
        base, x = Kernel(6, 8), batch()["x"]
        assert torch.allclose(Rank1Linear(base, alpha=2.0)(x), base(x), rtol=1e-5, atol=1e-5)
        assert len(calls) == runs
        calls.clear()


def test_writes_that_do_not_reach_the_output_are_found_out(register):
    class Halved(Kernel):
        def forward(self, x):
            return x @ self.kernel / 2 + self.bias

    register(KERNEL)
    assert Rank1Linear(Kernel(6, 8), alpha=1.0).mergeable
    assert not Rank1Linear(Halved(6, 8), alpha=1.0).mergeable


def test_a_matrix_that_is_no_view_is_never_written(register, randomise_adapters):
    """Its boosters go into the bank, and the model computes the same."""
    register(
        LayerKind(
            "toy blocks",
            lambda module: (module.kernel.shape[1], len(module.bias)) if isinstance(module, Blocks) else None,
            weight_name="kernel",
            matrix=lambda kernel: kernel.movedim(1, 2).flatten(0, 1),
        )
    )
    model = Classifier(Blocks(6, 8))
    adapters = attach(model)
    assert [layer.mergeable for layer in adapters.layers.values()] == [False, True]
    booster = xgblora.Booster(adapters)
    randomise_adapters(adapters)
    with torch.no_grad():
        adapted = model(batch()["x"])
        booster.merge()
        assert torch.allclose(model(batch()["x"]), adapted, rtol=1e-4, atol=1e-4)


def test_a_weight_of_any_name_that_is_shared_is_refused(register):
    register(KERNEL)
    model = nn.ModuleDict({"first": Kernel(6, 8), "second": Kernel(6, 8)})
    model["second"].kernel = model["first"].kernel
    with pytest.raises(InputError, match="the weight of first is shared with second"):
        xgblora.attach(model, ["first"], alpha=1.0)


def test_peft_has_no_name_for_it_or_the_one_it_says(register, randomise_adapters, tmp_path):
    for kind, is_known in ((KERNEL, False), (replace(KERNEL, name="known", fan_in_fan_out=True), True)):
        register(kind)
        model = Classifier(Kernel(6, 8))
        booster = xgblora.Booster(attach(model))
        randomise_adapters(booster.adapters)
        booster.merge()
        if is_known:
            xgblora.export_peft(booster.ledger, tmp_path / "adapter", base_model=model)
            assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["fan_in_fan_out"] is True
        else:
            message = r"first: PEFT adapts no layer of its kind \(a toy kernel\); export the merged model instead$"
            with pytest.raises(InputError, match=message):
                xgblora.export_peft(booster.ledger, tmp_path / "adapter", base_model=model)
            assert not (tmp_path / "adapter").exists()


def test_all_parameters_of_a_model_with_it_can_be_trained(make_model):
    full = xgblora.FullParameters(make_model())
    before = full.arena.master.clone()
    xgblora.ZeroOrder(full, loss_of, lr=1e-3).step(batch())
    assert not torch.equal(full.arena.master, before)


def test_the_last_kind_is_asked_first(register):
    layer = nn.Linear(6, 8)
    assert Rank1Linear(layer, alpha=1.0).kind.name == "nn.Linear"
    register(LayerKind("mine", lambda module: (6, 8) if module is layer else None))
    assert Rank1Linear(layer, alpha=1.0).kind.name == "mine"
    assert Rank1Linear(nn.Linear(6, 8), alpha=1.0).kind.name == "nn.Linear"


def test_a_name_that_is_taken_is_refused(register):
    register(KERNEL)
    with pytest.raises(InputError, match="kind=a toy kernel: a kind of layer of this name is registered already"):
        register(replace(KERNEL, multiplies=yes))
