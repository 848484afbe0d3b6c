"""`merge_rank1_` of the kernels gives the bits of the eager reference; a NaN is a NaN, whichever it is."""

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

from xgblora.kernels import merge_rank1
from xgblora.kernels.weight_storage import share_memory
from xgblora.ops.merge_rank1 import ROUNDINGS, _merge, round_stochastically
from xgblora.ops.noise import Stream, random_words

HALVES = (torch.bfloat16, torch.float16)
VARIANTS = [(torch.float32, "nearest"), *((dtype, rounding) for dtype in HALVES for rounding in ROUNDINGS)]
# N, K: one element; rows below, beside and above a vector and a tile; one row, one column
SHAPES = [(1, 1), (3, 5), (5, 8), (17, 264), (9, 7), (1, 515), (17, 1)]
MARGIN, POISON = 16, 12345


@pytest.fixture(autouse=True)
def _numbers_of_every_size():
    """The interpreter is numpy, which warns where a number overflows or a NaN is converted."""
    with np.errstate(all="ignore"):
        yield


def factors(count: int, generator: torch.Generator) -> Tensor:
    """fp32 [count] of many exponents, with zeros, subnormals, an infinity and a NaN where there is room for them."""
    values = torch.randn(count, generator=generator) * 2.0 ** torch.randint(-24, 12, (count,), generator=generator)
    if count > 100:
        # the NaN that GPUs make: one more, and it would be a zero
        nan = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
        values[:8] = torch.tensor([0.0, -0.0, 1e-45, -1e-39, 1e38, -1e38, float("inf"), 0.0])
        values[7] = nan
    return values


def any_bits(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Values of any bit pattern."""
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    limits = torch.iinfo(integer)
    return torch.randint(limits.min, limits.max + 1, shape, generator=generator).to(integer).view(dtype)


class Case:
    """Weights of any bits inside poisoned storage, `offset` elements behind a 16-byte boundary, and their adapters.

    Args:
        device: where the tensors are; the values do not depend on it.
        shapes: [N, K] of each weight.
        dtypes, transposed: of the weights, in turn; a transposed weight is stored as [K, N].
    """

    def __init__(self, device, shapes, dtypes, *, transposed=(False,), offset=0):
        generator = torch.Generator().manual_seed(len(shapes) + offset)
        self.device, self.storages = device, []
        self.weights, self.planes, self.a, self.b = [], [], [], []
        for index, (outputs, inputs) in enumerate(shapes):
            dtype, turn = dtypes[index % len(dtypes)], transposed[index % len(transposed)]
            shape = (inputs, outputs) if turn else (outputs, inputs)
            weight = self._inside(any_bits(shape, dtype, generator), offset)
            plane = self._inside(any_bits(shape, torch.int16, generator), offset)
            self.weights.append(weight.T if turn else weight)
            self.planes.append(plane.T if turn else plane)
            self.a.append(self._inside(factors(inputs, generator), offset % 4))
            self.b.append(self._inside(factors(outputs, generator), offset % 4))

    def _inside(self, values: Tensor, offset: int) -> Tensor:
        size = offset + values.numel() + 2 * MARGIN
        storage = torch.full((size,), POISON, dtype=values.dtype, device=self.device)
        self.storages.append(storage)
        view = storage[MARGIN + offset : MARGIN + offset + values.numel()].view(values.shape)
        return view.copy_(values)

    def arguments(self, rounding: str, scale: float = 0.37, seed: int = 3) -> tuple:
        """Arguments of `merge_rank1_`."""
        return self.weights, self.a, self.b, self.planes, scale, rounding, seed


def assert_same(ours: list[Tensor], reference: list[Tensor]) -> None:
    """Every bit is the same, but for those of a NaN."""
    for mine, expected in zip(ours, reference, strict=True):
        mine = mine.cpu()
        assert torch.equal(mine.isnan(), expected.isnan())
        integer = torch.int32 if expected.dtype == torch.float32 else torch.int16
        bits = [torch.where(expected.isnan(), 0, tensor.contiguous().view(integer)) for tensor in (mine, expected)]
        assert torch.equal(*bits)


@pytest.fixture
def check(device):
    """A function that merges a `Case` with the kernel and on the CPU with the reference, and compares all storage."""

    def run(rounding, *arguments, scale=0.37, seed=3, **options):
        ours, reference = Case(device, *arguments, **options), Case("cpu", *arguments, **options)
        merge_rank1.merge_rank1_(*ours.arguments(rounding, scale, seed))
        _merge(*reference.arguments(rounding, scale, seed))
        assert_same(ours.storages, reference.storages)

    return run


@pytest.fixture
def launches(monkeypatch):
    """What was launched: the number of layers, then dtype, rounding and ALIGNED of each launch."""
    launch, seen = merge_rank1._launch, []

    def record(layers, *variant_and_values):
        seen.append((len(layers), *variant_and_values[:3]))
        launch(layers, *variant_and_values)

    monkeypatch.setattr(merge_rank1, "_launch", record)
    return seen


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("dtype", "rounding"), VARIANTS, ids=str)
def test_shapes(check, dtype, rounding, transposed):
    check(rounding, SHAPES, (dtype,), transposed=(transposed,))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_dtypes_and_layouts_mixed(check, rounding):
    check(rounding, SHAPES, (torch.bfloat16, torch.float32, torch.float16), transposed=(False, True, True))


@pytest.mark.parametrize("offset", [1, 2, 4, 7])
@pytest.mark.parametrize(("dtype", "rounding"), VARIANTS, ids=str)
def test_misaligned_storage(check, dtype, rounding, offset):
    check(rounding, [(3, 264), (2, 40), (3, 5)], (dtype,), transposed=(False, True), offset=offset)


@pytest.mark.parametrize(("dtype", "rounding"), VARIANTS, ids=str)
def test_a_model_of_one_dtype_is_one_aligned_launch(check, launches, dtype, rounding):
    check(rounding, [(24, 264), (16, 40), (40, 8), (8, 512)], (dtype,), transposed=(False, True, True))
    assert launches == [(4, dtype, rounding, True)]


def test_a_launch_for_each_dtype_and_one_for_odd_layers(check, launches):
    check("remainder", [(8, 16), (4, 8), (3, 7), (8, 8), (2, 8)], (torch.bfloat16, torch.float32))
    assert set(launches) == {
        (2, torch.bfloat16, "remainder", True),
        (2, torch.float32, "nearest", True),
        (1, torch.bfloat16, "remainder", False),
    }
    assert len(launches) == 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 3), (2, 2)])
def test_stochastic_numbers_go_on_behind_an_odd_layer(check, launches, shape):
    # the last one is shifted out of its tile
    check("stochastic", [shape, (16, 6), (5, 264), (5, 255)], (torch.bfloat16,), transposed=(False, True, False, False))
    aligned = [layers for layers, _, _, aligned in launches if aligned]
    assert aligned == ([2] if shape == (2, 2) else [])


@pytest.mark.parametrize("start", [2**33 + 8, 2**33 + 5, 2**40 + 3])
def test_numbers_beyond_32_bits(device, start):
    weight = torch.full((5, 272), 1.0).bfloat16()
    a, b = torch.full((272,), 2.0**-9), torch.ones(5)
    words = random_words(9, weight.numel() + start % 4, Stream.ROUNDING, device=weight.device, start=start - start % 4)
    total = weight.float() + b.unsqueeze(1) * a
    expected = round_stochastically(total, weight.dtype, words[start % 4 :].view(weight.shape))
    ours = weight.to(device, copy=True)
    layer = merge_rank1._Layer(ours, None, a.to(device), b.to(device), "stochastic", start)
    merge_rank1._merge([layer], 1.0, 9)
    assert torch.equal(ours.cpu(), expected)
    assert expected.unique().numel() == 2


@pytest.mark.parametrize("count", [128, 257])
def test_many_layers_in_one_launch(check, launches, count):
    check("nearest", [(1 + index % 3, 1 + index % 5) for index in range(count)], (torch.float16,))
    assert sum(layers for layers, *_ in launches) == count


def spacing_of(weight: Tensor) -> Tensor:
    """How far the next number is from the first one of each row, fp32 [N]; 1 where that is no number."""
    first = weight[:, 0].abs()
    spacing = torch.nextafter(first, torch.full_like(first, float("inf"))).float() - first.float()
    return torch.where(spacing.isfinite(), spacing, 1.0)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_weight_of_16_bits_beside_and_between_its_neighbours(device, dtype, rounding):
    # rows share an exponent, columns the fraction of the spacing that is added: ties, no change, all but a tie
    weight = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(256, 256)
    fractions = torch.tensor([0.5, -0.5, 1.5, 0.0, -0.0, 0.25, 1.0, 0.49999997, 0.50000006, -1.5, 2.0**-14, 3.0])
    pair = fractions.repeat(22)[:256], spacing_of(weight)
    plane = any_bits((256, 256), torch.int16, torch.Generator().manual_seed(1))
    plane[:, ::2] = 0
    results = []
    for place, merge in ((device, merge_rank1.merge_rank1_), ("cpu", _merge)):
        tensors = [tensor.to(place, copy=True) for tensor in (weight, plane, *pair)]
        merge([tensors[0]], [tensors[2]], [tensors[3]], [tensors[1]], 1.0, rounding, 5)
        results.append(tensors[:2])
    assert_same(*results)


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 1e-30, 16.0, 1 + 2.0**-30, -2.5])
def test_the_scale_is_rounded_to_fp32_and_multiplies_b(check, scale):
    check("nearest", [(7, 12), (12, 7)], (torch.float32,), transposed=(False, True), scale=scale)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**63 - 1, -(2**63)])
def test_every_seed(check, seed):
    check("stochastic", [(5, 7), (8, 40)], (torch.bfloat16,), seed=seed)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(
    "shapes", [[(0, 5), (3, 4)], [(3, 4), (5, 0)], [(0, 0), (2, 3), (4, 0), (0, 4), (3, 3), (0, 1)], [(0, 5)], []]
)
def test_empty_layers(check, rounding, shapes):
    check(rounding, shapes, (torch.bfloat16,))


def test_adapters_of_other_dtypes_and_strides(device):
    wide, weight = torch.randn(2, 24, generator=torch.Generator().manual_seed(0)), torch.ones(12, 24).bfloat16()
    results = []
    for place, merge in ((device, merge_rank1.merge_rank1_), ("cpu", _merge)):
        merged = weight.to(place, copy=True)
        merge([merged], [wide[0].half().to(place)], [wide[1].to(place)[::2]], [], 0.3, "nearest", 0)
        results.append([merged])
    assert_same(*results)


def views(place, rounding: str, merge) -> list[Tensor]:
    """The storages of a strided weight and of a transposed one whose plane is row-major, merged."""
    generator = torch.Generator().manual_seed(0)
    wide, transposed = (
        torch.randn(8, 20, generator=generator).bfloat16(),
        torch.randn(6, 16, generator=generator).half(),
    )
    planes = [torch.zeros(4, 10, dtype=torch.int16), torch.zeros(16, 6, dtype=torch.int16)]
    wide, transposed, *planes = (tensor.to(place) for tensor in (wide, transposed, *planes))
    weights = [wide[::2, 1:11], transposed.T]
    a = [torch.randn(weight.shape[1], generator=generator).to(place) for weight in weights]
    b = [torch.randn(weight.shape[0], generator=generator).to(place) for weight in weights]
    for seed in range(2):
        merge(weights, a, b, planes, 0.3, rounding, seed)
    return [wide, transposed, *planes]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_views_of_any_strides_are_written_through(device, rounding):
    assert_same(views(device, rounding, merge_rank1.merge_rank1_), views("cpu", rounding, _merge))


def tied(place, rounding: str, merge) -> list[Tensor]:
    """A weight and its plane, merged into as one layer, as another, as a transposed one and as one of a part."""
    generator = torch.Generator().manual_seed(0)
    weight, plane = torch.ones(16, 8).bfloat16().to(place), torch.zeros(16, 8, dtype=torch.int16).to(place)
    shapes = [(16, 8), (16, 8), (8, 16), (16, 4)]
    a = [torch.randn(inputs, generator=generator).to(place) for _, inputs in shapes]
    b = [torch.randn(outputs, generator=generator).to(place) for outputs, _ in shapes]
    views = [[tensor, tensor, tensor.T, tensor[:, ::2]] for tensor in (weight, plane)]
    merge(views[0], a, b, views[1], 0.3, rounding, 2)
    return [weight, plane]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_weights_that_share_memory_are_merged_one_after_the_other(device, rounding):
    assert_same(tied(device, rounding, merge_rank1.merge_rank1_), tied("cpu", rounding, _merge))


def test_what_shares_memory():
    flat = torch.zeros(64)
    halves, rows = [flat[:32].view(4, 8), flat[32:].view(8, 4)], flat.view(8, 8)
    assert not share_memory(halves)
    assert not share_memory([*halves, flat[:0].view(0, 3)])
    assert share_memory([halves[0], flat[31:39].view(2, 4)])
    assert share_memory([rows, rows.T])
    assert not share_memory([rows[:4], rows[4:].T])
