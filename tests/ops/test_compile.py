"""The operations inside compiled code: the same numbers, no graph break, no recompilation for a new number."""

import shutil

import pytest
import torch
from torch import nn

import xgblora
from xgblora import ops
from xgblora.ops.update import RULES


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def counted():
    """A backend that runs the graph as it is, and the list of graphs it was given: one for each compilation."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    return backend, graphs


def make_layer(rank=1):
    torch.manual_seed(0)
    layer = xgblora.Rank1Linear(nn.Linear(6, 5), alpha=2.0, rank=rank)
    nn.init.normal_(layer.b)
    return layer


@pytest.mark.parametrize("rank", [1, 3])
def test_rank1_linear_compiles_whole_with_its_gradients(rank):
    layer = make_layer(rank)
    x = torch.randn(4, 6, requires_grad=True)
    eager = torch.autograd.grad(layer(x).square().sum(), (x, layer.a, layer.b))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))
    gradients = torch.autograd.grad(compiled(x).square().sum(), (x, layer.a, layer.b))
    for ours, theirs in zip(gradients, eager, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_rank1_linear_compiles_with_inductor():
    layer, x = make_layer(), torch.randn(4, 6)
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True)(x)
        assert torch.allclose(compiled, layer(x), rtol=1e-5, atol=1e-6)


def test_a_model_with_adapters_compiles_without_a_graph_break(make_model, token_batch, randomise_adapters):
    model, batch = make_model(), token_batch()
    randomise_adapters(xgblora.attach(model, alpha=2.0))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-6)


def test_a_compiled_model_reads_what_live_holds_now(make_opt, token_batch, randomise_adapters, counted):
    backend, graphs = counted
    model, batch = make_opt(), token_batch()
    adapters = xgblora.attach(model, alpha=2.0)
    randomise_adapters(adapters)
    arena = adapters.arena
    arena.allocate_live(2, torch.float32)
    arena.read_live(0, 2)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        for seed in range(3):
            ops.perturb(arena.master, arena.live, seed, 0.1, torch.tensor([1.0, -1.0]))
            assert torch.allclose(compiled(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1


def test_new_seeds_eps_and_learning_rates_do_not_recompile(counted):
    backend, graphs = counted
    signs = torch.tensor([1.0, -1.0])

    def step(master, live, seed, eps, coefficient, lr):
        ops.perturb(master, live, seed, eps, signs)
        ops.update_(master, seed, coefficient, lr=lr)

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    masters, lives = torch.ones(2, 9), torch.zeros(2, 2, 9)
    for number in range(1, 5):
        numbers = torch.tensor([number]), *torch.tensor([[1e-3], [2.0], [0.1]]) * number
        compiled(masters[0], lives[0], *numbers)
        step(masters[1], lives[1], *numbers)
        assert torch.equal(masters[0], masters[1])
        assert torch.equal(lives[0], lives[1])
    assert len(graphs) == 1


@pytest.mark.parametrize("optimizer", ["sign", "momentum", "adam"])
def test_an_update_with_moments_compiles_whole(counted, optimizer):
    backend, graphs = counted
    names, count = RULES[optimizer]

    def step(master, moments, seed, coefficient, lr, factors):
        ops.update_(master, seed, coefficient, lr=lr, optimizer=optimizer, **moments, factors=factors)
        return master * 2

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    masters = torch.ones(2, 9)
    moments = [{name: torch.zeros(9) for name in names} for _ in range(2)]
    for number in range(1, 4):
        numbers = torch.tensor([number]), *torch.tensor([[2.0], [0.1]]) * number
        factors = torch.full((count,), 0.1 * number) if count else None
        doubled = compiled(masters[0], moments[0], *numbers, factors)
        step(masters[1], moments[1], *numbers, factors)
        assert torch.equal(masters[0], masters[1])
        assert torch.equal(doubled, masters[1] * 2)
        assert all(torch.equal(moments[0][name], moments[1][name]) for name in names)
    assert len(graphs) == 1


def test_a_merge_compiles_whole(counted):
    backend, graphs = counted
    weights = [torch.ones(3, 4).bfloat16(), torch.ones(3, 4).bfloat16()]
    remainders = [torch.zeros(3, 4, dtype=torch.int16) for _ in weights]

    def merge(weight, a, b, remainder):
        ops.merge_rank1_([weight], [(a, b)], 0.5, "remainder", remainders=[remainder])

    compiled = torch.compile(merge, fullgraph=True, backend=backend)
    for seed in range(3):
        torch.manual_seed(seed)
        a, b = torch.randn(4), torch.randn(3)
        compiled(weights[0], a, b, remainders[0])
        merge(weights[1], a, b, remainders[1])
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(remainders[0], remainders[1])
    assert len(graphs) == 1
