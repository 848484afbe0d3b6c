"""`perturb` by the host extension against the eager reference: the same bits."""

import itertools

import pytest
import torch

from xgblora.ops.backends.host import perturb
from xgblora.ops.eager import eager
from xgblora.ops.noise import DISTRIBUTIONS, normal
from xgblora.ops.perturb import LIVE_DTYPES

# around a Philox call, around a block of 256, several blocks
SIZES = (0, 1, 2, 3, 7, 255, 256, 257, 1021)
CPU = torch.device("cpu")


def both(master, dtype, seeds, signs, distribution="gaussian", eps=1e-3):
    """The result of the host and that of the reference, into NaN."""
    arguments = torch.tensor(seeds), torch.tensor([eps]), torch.tensor(signs), distribution
    lives = [torch.full((len(signs), master.numel()), float("nan"), dtype=dtype) for _ in range(2)]
    for function, live in zip((perturb, eager("perturb")), lives, strict=True):
        function(master, live, *arguments)
    return lives


@pytest.fixture(scope="module")
def normals():
    """Two million normals of the reference, by seed."""
    return {seed: normal(seed, 500_000, device=CPU) for seed in (0, -1, 2**63 - 1, 0x299F31D0_A4093822)}


def test_two_million_normals_have_the_bits_of_the_reference(instruction_set, normals):
    for seed, wanted in normals.items():
        live = torch.full((1, wanted.numel()), float("nan"))
        perturb(torch.zeros(wanted.numel()), live, torch.tensor([seed]), torch.ones(1), torch.ones(1), "gaussian")
        assert torch.equal(live[0], wanted)


@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_any_size_dtype_and_number_of_rows(instruction_set, distribution):
    for size, dtype in itertools.product(SIZES, LIVE_DTYPES):
        master = torch.randn(size, generator=torch.Generator().manual_seed(size))
        for seeds, signs in (([5], [1.0]), ([5], [1.0, -1.0, 0.0]), ([5, -(2**63)], [1.0, -1.0, 1.0, -1.0])):
            assert torch.equal(*both(master, dtype, seeds, signs, distribution))


@pytest.mark.parametrize("dtype", LIVE_DTYPES)
def test_every_kind_of_number_is_rounded_as_the_reference_does(instruction_set, dtype):
    # all exponents and both signs; sums that are subnormal, that overflow, ties; infinities
    exponents = torch.arange(-149, 128).repeat(64)
    fractions = 1 + torch.randint(0, 2**23, exponents.shape, generator=torch.Generator().manual_seed(0)) * 2.0**-23
    ties = (1 + torch.randint(0, 2**11, exponents.shape) * 2.0**-11).to(torch.float32)
    values = [torch.ldexp(part.to(torch.float32), exponents) for part in (fractions, ties)]
    master = torch.cat([*values, *(-value for value in values), torch.tensor([0.0, float("inf"), -float("inf")])])
    ours, wanted = both(master, dtype, [3], [0.0, 1.0], eps=1e-20)
    assert torch.equal(ours, wanted)
    assert perturb_of_nan(dtype).isnan().all(), "a NaN stays one"


def perturb_of_nan(dtype):
    live = torch.zeros(1, 5, dtype=dtype)
    perturb(torch.full((5,), float("nan")), live, torch.tensor([1]), torch.ones(1), torch.ones(1), "gaussian")
    return live


def test_nothing_but_live_is_written_and_addresses_may_be_odd(instruction_set, inside_poison):
    for size, dtype in itertools.product((1, 257, 1000), LIVE_DTYPES):
        master, around_master = inside_poison(torch.randn(size))
        live, around_live = inside_poison(torch.zeros(2, size, dtype=dtype))
        before = around_master.clone()
        seeds, eps, signs = torch.tensor([3]), torch.tensor([0.5]), torch.tensor([1.0, -1.0])
        perturb(master, live, seeds, eps, signs, "gaussian")
        wanted = torch.empty(2, size, dtype=dtype)
        eager("perturb")(master, wanted, seeds, eps, signs, "gaussian")
        assert torch.equal(live, wanted)
        assert torch.equal(around_master, before)
        live.fill_(12345.0)
        assert (around_live == torch.tensor(12345.0, dtype=dtype)).all()


def test_the_number_of_threads_changes_no_bit(threads):
    master = torch.randn(300_001)
    for count in (1, 2, 5):
        threads(count)
        assert torch.equal(*both(master, torch.bfloat16, [7], [1.0, -1.0]))


def test_seeds_and_signs_with_gaps_between_them():
    master, lives = torch.randn(300), [torch.empty(4, 300) for _ in range(2)]
    seeds, signs = torch.tensor([3, 0, 4, 0])[::2], torch.tensor([1.0, 9, -1, 9, 0.5, 9, 2, 9])[::2]
    for function, live in zip((perturb, eager("perturb")), lives, strict=True):
        function(master, live, seeds, torch.tensor([0.1]), signs, "gaussian")
    assert torch.equal(*lives)
