"""Noise of the kernels: the published vectors of Philox, and the bits of the eager reference."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

import triton
import triton.language as tl

from xgblora.kernels import philox
from xgblora.ops import noise

# Random123 1.14, kat_vectors, philox4x32 10: counter, key, result
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@triton.jit
def _philox_kernel(words_ptr, out_ptr, BLOCK: tl.constexpr):
    """Rows of `words` [6, BLOCK] are four counter and two key words, rows of `out` [4, BLOCK] the result; int64."""
    lane = tl.arange(0, BLOCK)
    c0 = tl.load(words_ptr + lane).to(tl.uint32)
    c1 = tl.load(words_ptr + BLOCK + lane).to(tl.uint32)
    c2 = tl.load(words_ptr + 2 * BLOCK + lane).to(tl.uint32)
    c3 = tl.load(words_ptr + 3 * BLOCK + lane).to(tl.uint32)
    k0 = tl.load(words_ptr + 4 * BLOCK + lane).to(tl.uint32)
    k1 = tl.load(words_ptr + 5 * BLOCK + lane).to(tl.uint32)
    c0, c1, c2, c3 = philox.philox4x32(c0, c1, c2, c3, k0, k1)
    tl.store(out_ptr + lane, c0.to(tl.int64))
    tl.store(out_ptr + BLOCK + lane, c1.to(tl.int64))
    tl.store(out_ptr + 2 * BLOCK + lane, c2.to(tl.int64))
    tl.store(out_ptr + 3 * BLOCK + lane, c3.to(tl.int64))


@triton.jit
def _words_kernel(seed_ptr, counters_ptr, out_ptr, stream, BLOCK: tl.constexpr):
    """out [4 BLOCK] int64: the words of BLOCK counters, in order."""
    counters = tl.load(counters_ptr + tl.arange(0, BLOCK))
    words = philox.random_words_in_order(tl.load(seed_ptr), counters, stream)
    tl.store(out_ptr + tl.arange(0, 4 * BLOCK), words.to(tl.int64))


def test_published_vectors(device):
    words = torch.tensor([[*counter, *key] for counter, key, _ in KNOWN_ANSWERS] + [[0] * 6]).T.contiguous().to(device)
    out = torch.full((4, 4), -1, device=device)
    _philox_kernel[(1,)](words, out, BLOCK=4)
    assert out.T.tolist()[:3] == [list(answer) for _, _, answer in KNOWN_ANSWERS]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x1234567890ABCDEF])
@pytest.mark.parametrize("first", [0, 2**32 - 2, 2**40 + 5], ids=["start", "across 2^32 counters", "far"])
def test_words_match_the_reference(device, seed, first):
    counters = torch.arange(first, first + 8, device=device)
    out = torch.full((32,), -1, device=device)
    _words_kernel[(1,)](torch.tensor([seed], device=device), counters, out, 1, BLOCK=8)
    expected = noise.random_words(seed, 32, noise.Stream.ROUNDING, device=torch.device("cpu"), start=4 * first)
    assert out.tolist() == expected.tolist()


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_ten_million_values_are_bit_identical_to_the_reference(device, distribution):
    count, seed = 10_000_000, -0x123456789ABCDEF
    expected = noise.DISTRIBUTIONS[distribution](seed, count, device=torch.device("cpu"))
    # the interpreter's cost is that of a program: few and large ones there, launch-sized ones on a GPU
    block = 1 << 18 if device.type == "cpu" else philox.BLOCK
    values = philox.noise(torch.tensor([seed], device=device), count, distribution, block=block)
    assert torch.equal(values.cpu(), expected)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 1023, 1024, 4099])
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_any_count(device, distribution, count):
    values = philox.noise(torch.tensor([5], device=device), count, distribution)
    expected = noise.DISTRIBUTIONS[distribution](5, count, device=torch.device("cpu"))
    assert torch.equal(values.cpu(), expected)


def test_streams_differ_as_in_the_reference(device):
    values = philox.noise(torch.tensor([5], device=device), 100, stream=2)
    expected = noise.normal(5, 100, device=torch.device("cpu"), stream=noise.Stream.INITIALISATION)
    assert torch.equal(values.cpu(), expected)
