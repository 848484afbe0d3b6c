"""The operations against what they replace: a linear layer, PEFT, the compiler, noise a tensor, `addmm_`."""

import functools

import pytest
import torch
import torch.nn.functional as F

from benchmarks.measure import compare
from xgblora import ops

ROUNDS = 15


def linear_case(device, dtype, rows):
    torch.manual_seed(0)
    size = 4096 if device.type == "cuda" else 1024
    x, weight = torch.randn(rows, size, device=device), torch.randn(size, size, device=device) * size**-0.5
    a, b = torch.randn(1, size, device=device) * size**-0.5, torch.randn(1, size, device=device)
    return x.to(dtype), weight.to(dtype), a.to(dtype), b.to(dtype)


@pytest.mark.parametrize("rows", [16, 768, 4096])
def test_rank1_linear_against_linear_and_unfused(benchmark, device, dtype, rows):
    x, weight, a, b = linear_case(device, dtype, rows)

    def unfused():
        return F.linear(x, weight) + (x @ a.T) @ b * 16.0

    def fused():
        return ops.rank1_linear(x, weight, None, a, b, 16.0)

    torch.testing.assert_close(fused(), unfused(), rtol=5e-2, atol=5e-1 if dtype == torch.bfloat16 else 1e-3)
    ways = {"rank1_linear": fused, "linear": lambda: F.linear(x, weight), "unfused": unfused}
    compare(benchmark, "rank1_linear", ways, rounds=ROUNDS, device=device)


@pytest.mark.published
@pytest.mark.parametrize("rows", [16, 768])
def test_rank1_linear_against_the_compiler(benchmark, device, dtype, rows):
    """`torch.compile` may fuse what it likes and try every kernel it has; that takes it the better part of a minute."""
    x, weight, a, b = linear_case(device, dtype, rows)

    @functools.partial(torch.compile, mode="max-autotune", fullgraph=True, dynamic=False)
    def compiled(x, weight, a, b):
        return F.linear(x, weight) + (x @ a.T) @ b * 16.0

    def ours():
        return ops.rank1_linear(x, weight, None, a, b, 16.0)

    with torch.no_grad():
        expected = compiled(x, weight, a, b).clone()
        torch.testing.assert_close(ours(), expected, rtol=5e-2, atol=5e-1 if dtype == torch.bfloat16 else 1e-3)
        ways = {"rank1_linear": ours, "max_autotune": lambda: compiled(x, weight, a, b)}
        compare(benchmark, "rank1_linear", ways, rounds=ROUNDS, device=device)


@pytest.mark.parametrize("rows", [16, 768])
def test_rank1_layer_against_peft(benchmark, device, dtype, rows):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    from xgblora import Rank1Linear

    x, weight, a, b = linear_case(device, dtype, rows)
    base = torch.nn.Linear(*weight.shape[::-1], bias=False, device=device, dtype=dtype)
    base.weight.data.copy_(weight)
    theirs = peft.get_peft_model(
        torch.nn.Sequential(base), peft.LoraConfig(r=1, lora_alpha=16, target_modules=["0"], lora_dropout=0.0)
    ).to(dtype)
    layer = theirs.base_model.model[0]
    layer.lora_A["default"].weight.data.copy_(a)
    layer.lora_B["default"].weight.data.copy_(b.T)
    ours = Rank1Linear(torch.nn.Linear(*weight.shape[::-1], bias=False, device=device, dtype=dtype), alpha=16.0)
    ours.base.weight.data.copy_(weight)
    ours.a.data.copy_(a)
    ours.b.data.copy_(b)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), layer(x), rtol=5e-2, atol=5e-1 if dtype == torch.bfloat16 else 1e-3)
        ways = {"rank1_linear": lambda: ours(x), "peft": lambda: layer(x)}
        compare(benchmark, "rank1_linear", ways, rounds=ROUNDS, device=device)


def arena_case(device, dtype):
    """2.6 million parameters, as 1,300 vectors of 2,000: rank-1 adapters on every layer of a model of 13 billion."""
    master = torch.randn(2_600_000, device=device)
    return master, torch.empty(2, master.numel(), dtype=dtype, device=device), list(master.clone().split(2000))


def test_perturb_against_noise_per_tensor(benchmark, device, dtype):
    master, live, vectors = arena_case(device, dtype)
    seed, eps = torch.tensor([7], device=device), torch.tensor([1e-3], device=device)
    signs = torch.tensor([1.0, -1.0], device=device)

    def fused():
        ops.perturb(master, live, seed, eps, signs)

    def per_tensor():
        # both signs, as MeZO makes them: the noise of each anew
        for size in (1e-3, -2e-3):
            torch.manual_seed(7)
            for vector in vectors:
                vector.add_(torch.randn_like(vector), alpha=size)

    fused()
    torch.testing.assert_close(live.float().mean(0), master, rtol=1e-2, atol=1e-2)
    compare(benchmark, "perturb", {"perturb": fused, "per_tensor": per_tensor}, rounds=ROUNDS, device=device)


def test_update_against_noise_per_tensor(benchmark, device, dtype):
    master, _, vectors = arena_case(device, dtype)
    seeds, coefficients = torch.tensor([7], device=device), torch.tensor([0.1], device=device)
    lr = torch.tensor([1e-4], device=device)

    def fused():
        ops.update_(master, seeds, coefficients, lr=lr)

    def per_tensor():
        torch.manual_seed(7)
        for vector in vectors:
            vector.add_(torch.randn_like(vector), alpha=-1e-5)

    before = master.clone()
    fused()
    assert 0 < (master - before).abs().max() < 1e-3
    compare(benchmark, "update", {"update": fused, "per_tensor": per_tensor}, rounds=ROUNDS, device=device)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_noise_and_update_of_a_step_against_mezo(benchmark, device, dtype, optimizer):
    """All of a step but its forwards, for 2.6 million parameters: rank 13 on q and v of OPT-1.3b, 96 tensors."""
    parameters = [torch.randn(13, 2048, device=device) for _ in range(96)]
    master = torch.cat([parameter.flatten() for parameter in parameters])
    live = torch.empty(2, master.numel(), dtype=dtype, device=device)
    seeds, one = torch.tensor([7], device=device), torch.ones(1, device=device)
    signs, eps, lr = torch.tensor([1.0, -1.0], device=device), 1e-3 * one, 1e-4 * one
    adam = [torch.zeros_like(master), torch.zeros_like(master), torch.tensor([0.9, 0.1, 0.99, 0.01, 1e-8, 1, 1])]
    moments = dict(zip(("first", "second", "factors"), [tensor.to(device) for tensor in adam], strict=True))
    theirs = torch.optim.Adam([parameter.clone() for parameter in parameters], lr=1e-4)

    def ours():
        ops.perturb(master, live, seeds, eps, signs)
        ops.update_(master, seeds, one, lr=lr, optimizer=optimizer, **(moments if optimizer == "adam" else {}))
        live.copy_(master)

    def noise():
        torch.manual_seed(7)
        for parameter in parameters:
            yield parameter, torch.normal(0.0, 1.0, size=parameter.shape, device=device)

    def mezo():
        # plus, minus, back, and the update: each makes the noise anew, as MeZO does
        for size in (1e-3, -2e-3, 1e-3):
            for parameter, z in noise():
                parameter.add_(z, alpha=size)
        if optimizer == "sgd":
            for parameter, z in noise():
                parameter.sub_(z, alpha=1e-4)
        else:
            for parameter, (_, z) in zip(theirs.param_groups[0]["params"], noise(), strict=True):
                parameter.grad = z
            theirs.step()

    before = master.clone()
    ours()
    assert 0 < (master - before).abs().max() < 1e-3
    assert torch.equal(live[0], master.to(dtype))
    compare(benchmark, "ours", {"ours": ours, "mezo": mezo}, rounds=ROUNDS, device=device)


@pytest.mark.parametrize("rounding", ["nearest", "remainder", "stochastic"])
def test_merge_against_addmm_and_a_product(benchmark, device, dtype, rounding):
    size, layers = (4096, 8) if device.type == "cuda" else (512, 8)
    weights = [torch.randn(size, size, device=device).to(dtype) for _ in range(layers)]
    pairs = [(torch.randn(size, device=device) * 1e-3, torch.randn(size, device=device)) for _ in weights]
    remainders = ops.new_remainders(weights)
    expected = weights[0].float() + 0.1 * torch.outer(pairs[0][1], pairs[0][0])

    def fused():
        ops.merge_rank1_(weights, pairs, 0.1, rounding, remainders=remainders, seed=3)

    def addmm():
        for weight, (a, b) in zip(weights, pairs, strict=True):
            weight.addmm_(b.to(dtype).unsqueeze(1), a.to(dtype).unsqueeze(0), alpha=0.1)

    def product():
        for weight, (a, b) in zip(weights, pairs, strict=True):
            weight += 0.1 * b.to(dtype).unsqueeze(1) @ a.to(dtype).unsqueeze(0)

    fused()
    torch.testing.assert_close(weights[0].float(), expected, rtol=2e-2, atol=2e-2)
    ways = {"merge": fused, "addmm": addmm, "product": product}
    compare(benchmark, "merge", ways, rounds=5, device=device)


@pytest.mark.parametrize("rounding", ["nearest", "remainder", "stochastic"])
def test_merge_against_a_copy(benchmark, device, rounding):
    """A copy of as many bytes as the merge must move: each weight, and each remainder, in and out once."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device: the bandwidth of a GPU's memory is what it is about")
    # 4 GiB of weights, so that making the table and the launch are little beside the kernel
    size, layers = 16384, 8
    weights = [torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(layers)]
    pairs = [(torch.randn(size, device=device) * 1e-3, torch.randn(size, device=device)) for _ in weights]
    remainders = ops.new_remainders(weights) if rounding == "remainder" else None
    moved = [torch.empty_like(tensor) for tensor in [*weights, *(remainders or [])]]
    before = weights[0][:64].float()

    def merge():
        ops.merge_rank1_(weights, pairs, 0.1, rounding, remainders=remainders, seed=3)

    def copy():
        for target, source in zip(moved, [*weights, *(remainders or [])], strict=True):
            target.copy_(source)

    merge()
    expected = before + 0.1 * torch.outer(pairs[0][1][:64], pairs[0][0])
    torch.testing.assert_close(weights[0][:64].float(), expected, rtol=2e-2, atol=2e-2)
    compare(benchmark, "merge", {"merge": merge, "copy": copy}, rounds=ROUNDS, device=device)
    benchmark.extra_info["bytes_moved"] = 2 * sum(tensor.numel() * tensor.element_size() for tensor in moved)


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_merge_of_noise_against_a_merge_a_term(benchmark, device, weight_dtype):
    """256 terms from their seeds in one call, against a call of `merge_rank1_` for each, whose noise is made before."""
    size, layers, terms = (2048, 4, 256) if device.type == "cuda" else (512, 2, 256)
    weights = [torch.randn(size, size, device=device).to(weight_dtype) for _ in range(layers)]
    starts = [(2 * layer * size, (2 * layer + 1) * size) for layer in range(layers)]
    seeds, coefficients = torch.arange(terms, device=device), torch.randn(terms, device=device) * 1e-3
    noise = [ops.noise.normal(seed, 2 * layers * size, device=device) for seed in seeds]
    pairs = [[(z[a : a + size], z[b : b + size]) for a, b in starts] for z in noise]
    remainders, scales = ops.new_remainders(weights), coefficients.tolist()
    expected = weights[0].float() + sum(
        scale * torch.outer(its[0][1], its[0][0]) for scale, its in zip(scales, pairs, strict=True)
    )

    def at_once():
        ops.merge_noise_(weights, starts, seeds, coefficients, "remainder", remainders=remainders)

    def a_term():
        for scale, its in zip(scales, pairs, strict=True):
            ops.merge_rank1_(weights, its, scale, "remainder", remainders=remainders)

    at_once()
    torch.testing.assert_close(weights[0].float(), expected, rtol=1e-2, atol=1e-3)
    compare(benchmark, "at_once", {"at_once": at_once, "a_term": a_term}, rounds=5, device=device)
