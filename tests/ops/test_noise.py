"""Noise addressed by (seed, index): the published vectors of Philox, and what a replay relies on."""

import itertools
import math

import pytest
import torch

from xgblora.ops.noise import (
    DISTRIBUTIONS,
    Stream,
    _sqrt_,
    derive_seed,
    normal,
    philox4x32,
    rademacher,
    random_words,
    uniform,
)

CPU = torch.device("cpu")

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


def test_the_square_root_of_box_muller_is_rounded_as_ieee_says():
    """Against Python's, which is the processor's; the radius lies in 0 .. sqrt(-2 ln 2^-32)."""
    values = torch.linspace(0.0, 44.4, 100_003, dtype=torch.float64)
    assert _sqrt_(values.clone()).tolist() == [math.sqrt(value) for value in values.tolist()]
    assert _sqrt_(torch.empty(0, dtype=torch.float64)).numel() == 0


def _philox(counter, key):
    return tuple(philox4x32(torch.tensor(counter).unsqueeze(1), torch.tensor(key))[:, 0].tolist())


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_published_vectors(counter, key, answer):
    assert _philox(counter, key) == answer


def test_published_vectors_through_seed_and_index():
    assert tuple(random_words(0, 4, Stream.DIRECTION, device=CPU).tolist()) == KNOWN_ANSWERS[0][2]


def test_many_counters_at_once_are_each_on_its_own():
    counters = torch.tensor([counter for counter, _, _ in KNOWN_ANSWERS]).T
    key = torch.tensor(KNOWN_ANSWERS[2][1])
    together = philox4x32(counters, key)
    alone = [_philox(counter, KNOWN_ANSWERS[2][1]) for counter, _, _ in KNOWN_ANSWERS]
    assert together.T.tolist() == [list(words) for words in alone]


@pytest.mark.parametrize("make", [normal, rademacher, uniform], ids=lambda make: make.__name__)
def test_a_value_depends_on_seed_and_index_alone(make):
    longest = make(11, 1001, device=CPU)
    for count in (1, 2, 3, 4, 5, 7, 8, 1000):
        assert torch.equal(make(11, count, device=CPU), longest[:count])


@pytest.mark.parametrize("make", [normal, rademacher, uniform], ids=lambda make: make.__name__)
def test_no_values(make):
    assert make(11, 0, device=CPU).shape == (0,)


@pytest.mark.parametrize("start", [4, 400, 1000])
def test_words_from_the_middle(start):
    whole = random_words(3, 1100, Stream.DIRECTION, device=CPU)
    assert torch.equal(random_words(3, 99, Stream.DIRECTION, device=CPU, start=start), whole[start : start + 99])


def test_words_start_at_a_whole_philox_call():
    with pytest.raises(ValueError, match="multiple of 4"):
        random_words(3, 8, Stream.DIRECTION, device=CPU, start=2)


@pytest.mark.parametrize("first", [2**32 - 1, 2**32, 2**40 + 3])
def test_counters_above_32_bits_carry_into_the_second_word(first):
    words = random_words(0x299F31D0_A4093822, 8, Stream.ROUNDING, device=CPU, start=4 * first)
    expected = [
        _philox((counter & 0xFFFFFFFF, counter >> 32, int(Stream.ROUNDING), 0), (0xA4093822, 0x299F31D0))
        for counter in (first, first + 1)
    ]
    assert words.tolist() == [word for call in expected for word in call]


def test_streams_differ():
    vectors = [random_words(9, 64, stream, device=CPU) for stream in Stream]
    assert len({tuple(vector.tolist()) for vector in vectors}) == len(Stream)


@pytest.mark.parametrize(
    ("seed", "key"),
    [
        (0, (0, 0)),
        (1, (1, 0)),
        (-1, (0xFFFFFFFF, 0xFFFFFFFF)),
        (-(2**63), (0, 0x80000000)),
        (2**63 - 1, (0xFFFFFFFF, 0x7FFFFFFF)),
    ],
)
def test_any_64_bit_seed_is_a_key(seed, key):
    expected = _philox((0, 0, 0, 0), key)
    assert tuple(random_words(seed, 4, Stream.DIRECTION, device=CPU).tolist()) == expected
    assert tuple(random_words(torch.tensor(seed), 4, Stream.DIRECTION, device=CPU).tolist()) == expected


def test_neighbouring_seeds_have_nothing_in_common():
    values = torch.stack([normal(seed, 20_000, device=CPU) for seed in (-1, 0, 1, 2)])
    correlations = torch.corrcoef(values) - torch.eye(4)
    assert correlations.abs().max() < 5 / math.sqrt(20_000)


def test_normals_are_normal():
    count = 1_000_000
    values = normal(1234, count, device=CPU).double()
    # five standard errors of each moment of a million standard normals
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((values**power).mean().item() - moment) < 5 * math.sqrt(variance / count)
    assert torch.corrcoef(values.view(-1, 2).T)[0, 1].abs() < 5 / math.sqrt(count / 2)
    # Kolmogorov-Smirnov at a level of 0.1%
    cdf = 0.5 * (1 + torch.erf(values.sort().values / math.sqrt(2)))
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    distance = torch.maximum(cdf - steps[:-1], steps[1:] - cdf).max().item()
    assert distance < 1.95 / math.sqrt(count)


def test_normals_reach_the_tails_and_are_finite():
    values = normal(5, 4_000_000, device=CPU)
    assert values.isfinite().all()
    # four million normals: the expected number beyond 5 is 2.3
    assert 4.5 < values.abs().max() < 6.7
    assert values.dtype == torch.float32


def test_rademacher_signs_are_balanced():
    count = 1_000_000
    signs = rademacher(77, count, device=CPU)
    assert torch.equal(signs.abs(), torch.ones(count))
    assert signs.mean().abs() < 5 / math.sqrt(count)
    assert (signs[1:] * signs[:-1]).mean().abs() < 5 / math.sqrt(count)


def test_uniform_values_fill_the_interval():
    count = 1_000_000
    values = uniform(77, count, device=CPU).double()
    assert values.abs().max() <= 1
    assert values.mean().abs() < 5 / math.sqrt(3 * count)
    assert ((values**2).mean() - 1 / 3).abs() < 5 * math.sqrt(4 / 45 / count)


def test_values_are_pinned():
    # a tape that was recorded with other bits would replay to another model
    assert normal(0, 4, device=CPU).tolist() == [
        0.991137683391571,
        -0.9246625900268555,
        -0.6176089644432068,
        -0.48206859827041626,
    ]
    assert rademacher(0, 8, device=CPU).tolist() == [1.0, 1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0]


def test_distributions_by_name():
    assert set(DISTRIBUTIONS) == {"gaussian", "rademacher"}
    assert torch.equal(DISTRIBUTIONS["gaussian"](3, 8, device=CPU), normal(3, 8, device=CPU))


def test_derived_seeds_are_pinned():
    seeds = [derive_seed(0), derive_seed(0, 0), derive_seed(0, 1), derive_seed(42, 3, 1)]
    assert seeds == [-2152535657050944081, -6411193824288604561, 627405149472732430, 6717522985872898827]
    # splitmix64 of state 0, the first output of Vigna's reference code
    assert derive_seed(0) & 0xFFFFFFFFFFFFFFFF == 0xE220A8397B1DCDAF


def test_derived_seeds_are_distinct_and_64_bits():
    indices = itertools.product((0, 1, -1), range(100), range(20))
    seeds = {derive_seed(seed, step, direction) for seed, step, direction in indices}
    assert len(seeds) == 3 * 100 * 20
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    assert min(seeds) < 0 < max(seeds)


def test_derived_seeds_depend_on_the_order_and_number_of_indices():
    assert len({derive_seed(1, 2, 3), derive_seed(1, 3, 2), derive_seed(1, 2), derive_seed(1, 2, 3, 0)}) == 4
