"""The kernels on a real GPU, called through `xgblora.ops`, against the eager reference.

Noise, perturb, update and merge are held to the bits that the reference gives on the CPU; `rank1_linear` to twice the
error of eager code in the same dtype on the same GPU, bf16 and every path included.
"""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

import triton

from xgblora import ops
from xgblora.kernels import merge_rank1, philox
from xgblora.kernels.rank1_linear import linear_by
from xgblora.kernels.row_dot import MAX_ADAPTERS
from xgblora.kernels.tuning import FEW_ROWS, FUSED_GEMM, VENDOR_GEMM, Plan
from xgblora.ops import noise
from xgblora.ops.merge_rank1 import ROUNDINGS, _merge, new_remainders
from xgblora.ops.rank1_linear import _backward, _forward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# rows, groups, inputs, outputs: decoding, a pair, several groups, odd sizes, a layer of a real model
SHAPES = [(1, 1, 1024, 1024), (2, 2, 1031, 77), (16, 4, 768, 3072), (63, 3, 129, 257), (4096, 8, 1024, 4096)]
PLANS = [
    Plan(FEW_ROWS, block_m=16, block_n=16, block_k=128),
    Plan(VENDOR_GEMM),
    Plan(FUSED_GEMM, block_m=64, block_n=64, block_k=32),
]


@pytest.fixture(autouse=True)
def _exact_fp32():
    """fp32 means fp32 in the eager code that the kernels are measured against."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(precision)


OF_TRITON = ("row_dots", "rank1_linear", "rank1_linear_backward", "perturb", "update_")


@pytest.mark.parametrize("operation", [*OF_TRITON, "row_dots_by_row", "rank1_linear_by_row"])
def test_cuda_tensors_run_triton(operation):
    assert ops.choose(operation, "cuda").backend == "triton"


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_noise_has_the_bits_of_the_cpu(distribution):
    for seed in (0, -7, 2**62 + 12345):
        values = philox.noise(torch.tensor([seed], device=CUDA), 10_000_001, distribution)
        expected = noise.DISTRIBUTIONS[distribution](seed, 10_000_001, device=torch.device("cpu"))
        assert torch.equal(values.cpu(), expected)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "groups", "directions"), [(1, 1, 1), (1003, 6, 3), (1_000_008, 2, 1), (99_999, 4, 4)])
def test_perturb_has_the_bits_of_the_cpu(size, groups, directions, dtype, distribution):
    master = torch.randn(size)
    seeds = torch.randint(-(2**62), 2**62, (directions,))
    signs = torch.tensor([1.0, -1.0, 0.0]).repeat(groups)[:groups]
    eps = torch.tensor([1e-2])
    expected = torch.full((groups, size), float("nan"), dtype=dtype)
    live = expected.to(CUDA)
    ops.perturb(master, expected, seeds, eps, signs, distribution=distribution)
    ops.perturb(master.to(CUDA), live, seeds.to(CUDA), eps.to(CUDA), signs.to(CUDA), distribution=distribution)
    assert torch.equal(live.cpu(), expected)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize(("size", "directions"), [(1, 1), (1003, 3), (1_000_008, 2), (99_999, 16)])
def test_update_has_the_bits_of_the_cpu(size, directions, distribution):
    expected = torch.randn(size)
    master = expected.to(CUDA)
    seeds, coefficients = torch.randint(-(2**62), 2**62, (directions,)), torch.randn(directions)
    rates = {"lr": torch.tensor([1e-2]), "weight_decay": torch.tensor([0.1])}
    ops.update_(expected, seeds, coefficients, **rates, distribution=distribution)
    on_device = {name: rate.to(CUDA) for name, rate in rates.items()}
    ops.update_(master, seeds.to(CUDA), coefficients.to(CUDA), **on_device, distribution=distribution)
    assert torch.equal(master.cpu(), expected)


def merged(place, shapes, dtype, rounding, merge, scale=0.37):
    """Weights, every other one stored as [K, N], and their remainders after two merges."""
    generator = torch.Generator().manual_seed(0)

    def normals(*size):
        return torch.randn(*size, generator=generator)

    weights = [(normals(*shape) * 0.05).to(place, dtype) for shape in shapes]
    weights[1::2] = [weight.T.contiguous().T for weight in weights[1::2]]
    remainders = new_remainders(weights)
    for seed in range(2):
        a = [(normals(inputs) * 0.05).to(place) for _, inputs in shapes]
        b = [(normals(outputs) * 0.05).to(place) for outputs, _ in shapes]
        merge(weights, a, b, remainders, scale, rounding, seed)
    return [*weights, *remainders]


# layers of a real model; layers of odd sizes, more of them than are searched at a time
@pytest.mark.parametrize(
    "shapes",
    [[(1024, 1024), (768, 3072), (4096, 1024)], [(1 + index % 37, 1 + index) for index in range(300)]],
    ids=len,
)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merge_has_the_bits_of_the_cpu(dtype, rounding, shapes):
    # not through `ops`, which prefers the CUDA extension where it is built
    ours = merged(CUDA, shapes, dtype, rounding, merge_rank1.merge_rank1_)
    for mine, expected in zip(ours, merged("cpu", shapes, dtype, rounding, _merge), strict=True):
        assert torch.equal(mine.cpu(), expected)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("terms", [7, 1100])
def test_merge_of_noise_has_the_bits_of_the_cpu(dtype, rounding, terms):
    seeds, coefficients = torch.arange(terms) * 7 - 3, torch.linspace(-1e-2, 1e-2, terms)
    results = []
    for place in (CUDA, torch.device("cpu")):
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(shape, generator=generator).to(place, dtype) for shape in ((300, 77), (64, 256))]
        weights[1] = weights[1].T
        remainders = new_remainders(weights)
        arguments = (weights, [(0, 77), (401, 602)], seeds.to(place), coefficients.to(place), rounding)
        ops.merge_noise_(*arguments, remainders=remainders, seed=5)
        results.append([part.cpu() for part in (*weights, *remainders)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_merge_of_every_weight_of_16_bits(dtype, rounding):
    results = []
    for place, merge in ((CUDA, merge_rank1.merge_rank1_), ("cpu", _merge)):
        weight = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(256, 256).to(place)
        remainder = torch.arange(-(2**15), 2**15).to(torch.int16).view(256, 256).flip(1).contiguous().to(place)
        a = 2.0 ** torch.linspace(-40, 20, 256).round()
        b = torch.randn(256, generator=torch.Generator().manual_seed(0))
        merge([weight], [a.to(place)], [b.to(place)], [remainder], 1 / 3, rounding, 7)
        results.append((weight.cpu(), remainder.cpu()))
    (weight, remainder), (expected, expected_remainder) = results
    # which NaN a NaN becomes is nobody's business
    number = ~expected.isnan()
    assert torch.equal(weight.isnan(), expected.isnan())
    assert torch.equal(weight.view(torch.int16)[number], expected.view(torch.int16)[number])
    assert torch.equal(remainder, expected_remainder)


def test_merges_of_other_models_compile_nothing(monkeypatch):
    compiled = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **facts: compiled.append(facts["repr"]))
    merged(CUDA, [(64, 128), (32, 64)], torch.bfloat16, "stochastic", merge_rank1.merge_rank1_)
    compiled.clear()
    for layers in (1, 2, 7, 16):
        shapes = [(8 * (layers + index), 16 * (1 + index)) for index in range(layers)]
        merged(CUDA, shapes, torch.bfloat16, "stochastic", merge_rank1.merge_rank1_, scale=0.1 * layers)
    assert compiled == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rank1_linear(rank1_case, assert_as_accurate, shape, dtype):
    case = rank1_case(*shape, dtype)
    y = ops.rank1_linear(*case.forward_arguments)
    assert_as_accurate(y, _forward(*case.forward_arguments), case.expected())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_dots_of_an_adapter_have_the_same_bits_whatever_stands_beside_it(rank1_case, shape, dtype):
    case = rank1_case(*shape, dtype)
    adapters = [case.a, *(torch.randn_like(case.a) for _ in range(MAX_ADAPTERS))]
    together = ops.row_dots(case.x, adapters)
    for t, a in zip(together, adapters, strict=True):
        assert torch.equal(t, ops.row_dots(case.x, [a])[0])
    arguments = case.forward_arguments
    assert torch.equal(ops.rank1_linear(*arguments, together[0]), ops.rank1_linear(*arguments))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.path)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_paths(rank1_case, assert_as_accurate, shape, dtype, plan):
    case = rank1_case(*shape, dtype)
    y = linear_by(plan, *case.forward_arguments)
    assert_as_accurate(y, _forward(*case.forward_arguments), case.expected())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward_through_autograd(rank1_case, assert_as_accurate, shape, dtype):
    case = rank1_case(*shape, dtype)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (case.x, case.a, case.b)]
    y = ops.rank1_linear(leaves[0], case.weight, case.bias, leaves[1], leaves[2], case.scale)
    y.backward(case.grad)
    eager = _backward(*case.backward_arguments, True)
    for leaf, reference, expected in zip(leaves, eager, case.expected_gradients(), strict=True):
        assert_as_accurate(leaf.grad, reference, expected)


def test_new_scalars_and_row_counts_compile_nothing(rank1_case, monkeypatch):
    compiled = []
    master, live = torch.randn(4096, device=CUDA), torch.empty(2, 4096, device=CUDA)
    seeds, eps = torch.arange(8, device=CUDA), torch.rand(8, device=CUDA)
    signs = torch.tensor([1.0, -1.0], device=CUDA)

    def step(index):
        ops.perturb(master, live, seeds[index : index + 1], eps[index], signs)
        ops.update_(master, seeds[: index + 1], eps[: index + 1], lr=eps[index], weight_decay=eps[index])
        case = rank1_case(128 + 2 * index, 2, 512, 256, torch.float16)
        ops.rank1_linear(case.x, case.weight, case.bias, case.a, case.b, 0.1 * index)

    step(0)
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **facts: compiled.append(facts["repr"]))
    for index in range(1, 8):
        step(index)
    assert compiled == []


def test_a_captured_graph_replays_with_new_values():
    master = torch.randn(5000, device=CUDA)
    live = torch.empty(2, 5000, dtype=torch.bfloat16, device=CUDA)
    seeds, eps = torch.tensor([1], device=CUDA), torch.tensor([1e-2], device=CUDA)
    signs = torch.tensor([1.0, -1.0], device=CUDA)
    coefficients, lr = torch.tensor([0.5], device=CUDA), torch.tensor([1e-2], device=CUDA)
    decay = torch.zeros(1, device=CUDA)

    def step():
        ops.perturb(master, live, seeds, eps, signs)
        ops.update_(master, seeds, coefficients, lr=lr, weight_decay=decay)

    start = master.clone()
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    seeds.fill_(-99)
    coefficients.fill_(-2.0)
    master.copy_(start)
    graph.replay()
    replayed = master.clone(), live.clone()
    master.copy_(start)
    step()
    assert torch.equal(master, replayed[0])
    assert torch.equal(live, replayed[1])
