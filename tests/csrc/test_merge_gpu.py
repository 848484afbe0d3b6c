"""The merge kernel on a real GPU, against eager code there and on the CPU, bit for bit."""

import pytest
import torch

from xgblora import ops
from xgblora.ops.backends.cuda import merge_rank1_
from xgblora.ops.eager import eager
from xgblora.ops.extension import extension
from xgblora.ops.merge_rank1 import ROUNDINGS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(extension().module is None, reason=f"needs the CUDA extension ({extension().state})"),
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# N, K: empty, one element, odd widths below, beside and above a vector, long rows, layers of real models
SHAPES = [(0, 5), (1, 1), (3, 5), (9, 7), (1, 4099), (4099, 1), (33, 129), (70, 301), (5, 0), (2, 9001), (768, 2304)]


@pytest.fixture
def assert_equals_eager(make_case):
    """A function that merges a `Case` on the GPU, and compares every byte with eager code on the GPU and on the CPU."""

    def check(rounding, *arguments, **options):
        case = make_case(*arguments, device="cuda", **options)
        merge_rank1_(*case.arguments(rounding))
        for device in ("cuda", "cpu"):
            reference = make_case(*arguments, device=device, **options)
            eager("merge_rank1_")(*reference.arguments(rounding))
            assert torch.equal(case.bytes().cpu(), reference.bytes().cpu()), device

    return check


def test_cuda_tensors_run_the_extension():
    assert ops.choose("merge_rank1_", "cuda").backend == "cuda"


@pytest.mark.parametrize("transposed", [(False,), (True,), (False, True)], ids=str)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtypes", [*[(dtype,) for dtype in DTYPES], DTYPES], ids=str)
def test_all_shapes(assert_equals_eager, dtypes, rounding, transposed):
    assert_equals_eager(rounding, SHAPES, dtypes, transposed=transposed)


@pytest.mark.parametrize("offset", range(1, 8))
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_misaligned_storage(assert_equals_eager, rounding, offset):
    shapes = [(3, 5), (40, 256), (2, 9001), (33, 129)]
    assert_equals_eager(rounding, shapes, DTYPES, transposed=(False, True), offset=offset, adapter_offset=offset % 4)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_all_bit_patterns(rounding, dtype):
    # 256 rows hold every 16-bit number; the columns bring updates of every exponent, ties, infinities
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(256, 256)
    exponents = torch.arange(256, dtype=torch.int32) << 23
    for low in (0, 0x1000, 0x8000, 0x7FFF):
        results = []
        for device in ("cuda", "cpu"):
            weights = [patterns.to(device, copy=True)]
            remainders = [torch.zeros(256, 256, dtype=torch.int16, device=device)]
            factors = [(exponents + low).view(torch.float32).to(device)], [torch.ones(256, device=device)]
            implementation = merge_rank1_ if device == "cuda" else eager("merge_rank1_")
            implementation(weights, *factors, remainders, 1.0, rounding, 5)
            results.append((weights[0].cpu(), remainders[0].cpu()))
        (ours, our_plane), (theirs, their_plane) = results
        both_nan = ours.isnan() & theirs.isnan()
        assert torch.all((ours.view(torch.int16) == theirs.view(torch.int16)) | both_nan)
        assert torch.equal(our_plane, their_plane)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_one_launch_for_all_layers(make_case, rounding):
    case = make_case([(64, 64)] * 20, DTYPES, transposed=(False, True), device="cuda")
    merge_rank1_(*case.arguments(rounding))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        merge_rank1_(*case.arguments(rounding))
        torch.cuda.synchronize()
    on_device = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    # beside the launch only the table travels
    kernels = [name for name in on_device if not name.startswith("Mem")]
    assert len(kernels) == 1 and "merge_rank1_kernel" in kernels[0], on_device


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_nothing_is_kept_in_local_memory(rounding):
    assert extension().module.merge_facts(rounding, 0)["local_bytes"] == 0


def test_a_stream_of_ones_own(make_case):
    case, reference = (make_case([(512, 512)] * 8, DTYPES, device="cuda") for _ in range(2))
    eager("merge_rank1_")(*reference.arguments("nearest"))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        merge_rank1_(*case.arguments("nearest"))
    stream.synchronize()
    torch.cuda.synchronize()
    assert torch.equal(case.bytes(), reference.bytes())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_and_the_current_one_is_kept(make_case):
    case, reference = (make_case([(33, 65)], DTYPES, device="cuda:1") for _ in range(2))
    eager("merge_rank1_")(*reference.arguments("nearest"))
    merge_rank1_(*case.arguments("nearest"))
    assert torch.cuda.current_device() == 0
    assert torch.equal(case.bytes(), reference.bytes())


def test_a_cuda_error_has_its_name():
    with pytest.raises(RuntimeError, match=r"^cudaErrorInvalidDevice: "):
        extension().module.merge_facts("nearest", 9999)
    with pytest.raises(ValueError, match=r"^rounding=up: must be one of"):
        extension().module.merge_facts("up", 0)
    # the error is reported once, and the next call is not its victim
    assert extension().module.merge_facts("nearest", 0)["registers"] > 0
