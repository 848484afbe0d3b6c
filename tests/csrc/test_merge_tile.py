"""The tiling of csrc/merge_tile.h, run on the CPU in many launch shapes, against the eager reference."""

import pytest
import torch

from xgblora.ops.eager import eager
from xgblora.ops.merge_rank1 import ROUNDINGS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# N, K: one element, odd widths below, beside and above a vector, long rows, several tiles, a long row of several tiles
SHAPES = [(1, 1), (3, 5), (5, 8), (9, 7), (1, 4099), (4099, 1), (33, 129), (17, 768), (70, 301), (2, 9001)]


@pytest.fixture
def assert_equals_eager(make_case, merge_on_host):
    """A function that merges a `Case` in each of the launches, and compares every byte with eager code."""

    def check(rounding, *arguments, launches=({},), **options):
        reference = make_case(*arguments, **options)
        untouched = reference.bytes()
        eager("merge_rank1_")(*reference.arguments(rounding))
        assert not torch.equal(reference.bytes(), untouched)
        for launch in launches:
            case = make_case(*arguments, **options)
            assert len(merge_on_host(*case.arguments(rounding), **launch)) == 1
            assert torch.equal(case.bytes(), reference.bytes()), launch

    return check


@pytest.mark.parametrize("transposed", [(False,), (True,), (False, True)], ids=str)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtypes", [*[(dtype,) for dtype in DTYPES], DTYPES], ids=str)
def test_all_shapes_in_one_launch(assert_equals_eager, dtypes, rounding, transposed):
    assert_equals_eager(rounding, SHAPES, dtypes, transposed=transposed)


@pytest.mark.parametrize("offset", range(1, 8))
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_misaligned_storage(assert_equals_eager, rounding, offset):
    shapes = [(3, 5), (40, 256), (2, 9001), (33, 129)]
    for dtype in DTYPES:
        assert_equals_eager(
            rounding, shapes, (dtype,), transposed=(False, True), offset=offset, adapter_offset=offset % 4
        )


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_bits_do_not_depend_on_the_launch(assert_equals_eager, rounding):
    launches = [{"blocks": blocks, "lanes": lanes} for blocks in (1, 2, 13, 400) for lanes in (1, 32, 100, 256, 1024)]
    arguments = [(33, 129), (300, 77), (64, 256)], (torch.bfloat16, torch.float32, torch.float16)
    assert_equals_eager(rounding, *arguments, transposed=(False, True), launches=launches)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(
    "shapes",
    [
        [(0, 5), (3, 4)],
        [(3, 4), (5, 0)],
        [(0, 0), (2, 3), (4, 0), (0, 4), (3, 3), (0, 1)],
    ],
    ids=str,
)
def test_empty_layers(assert_equals_eager, rounding, shapes):
    assert_equals_eager(rounding, shapes, (torch.bfloat16,))


def test_only_empty_layers_make_no_tile(make_case, merge_on_host):
    assert merge_on_host(*make_case([(0, 5), (5, 0)], DTYPES).arguments("nearest")) == [0]


@pytest.mark.parametrize(
    ("shape", "dtype", "offset", "tiles"),
    # 2 MiB of weights in tiles of 16 KiB, whatever the dtype; one element further, and the last one is in the next tile
    [((512, 1024), torch.float32, 0, 128), ((1024, 1024), torch.bfloat16, 0, 128), ((1024, 1024), torch.half, 1, 129)],
)
def test_tiles_hold_as_many_bytes_whatever_the_dtype(make_case, merge_on_host, shape, dtype, offset, tiles):
    case = make_case([shape], (dtype,), offset=offset)
    assert merge_on_host(*case.arguments("nearest")) == [tiles]


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_special_sums_come_out_of_the_tiling_too(make_case, merge_on_host, dtype):
    cases = [make_case([(8, 64)], (dtype,)) for _ in range(2)]
    for case in cases:
        case.weights[0][0] = float("inf")
        case.weights[0][1] = torch.finfo(dtype).max
        # what a merge leaves beside a zero: with a negative remainder -0.0 would stand for a NaN
        case.weights[0][2], case.remainders[0][2] = -0.0, 0
        case.a[0][:8] = torch.tensor([0.0, -0.0, 1e-38, 1e-45, 1e38, -1e38, 1.0, -1.0])
    merge_on_host(*cases[0].arguments("remainder"))
    eager("merge_rank1_")(*cases[1].arguments("remainder"))
    assert torch.equal(cases[0].bytes(), cases[1].bytes())


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_every_seed(make_case, merge_on_host, seed):
    cases = [make_case([(5, 7), (40, 33)], (torch.bfloat16,)) for _ in range(2)]
    merge_on_host(*cases[0].arguments("stochastic", seed=seed))
    eager("merge_rank1_")(*cases[1].arguments("stochastic", seed=seed))
    assert torch.equal(cases[0].bytes(), cases[1].bytes())
