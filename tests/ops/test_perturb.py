import pytest
import torch

from xgblora import ops
from xgblora.errors import InputError
from xgblora.ops.noise import DISTRIBUTIONS, normal

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = 1e-3


def make_master(size=37, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def poisoned(groups, size, dtype=torch.float32):
    return torch.full((groups, size), float("nan"), dtype=dtype)


def expected_row(master, dtype, seed, eps, sign, distribution="gaussian"):
    """The documented arithmetic: sign * eps, * z, + master, each rounded once in fp32, then the cast."""
    z = DISTRIBUTIONS[distribution](seed, master.numel(), device=CPU)
    return (torch.tensor(sign) * torch.tensor(eps) * z + master).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_every_row_is_the_formula_whatever_live_held(dtype, distribution):
    master = make_master()
    live, before = poisoned(4, 37, dtype), master.clone()
    signs, seeds = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([5, -(2**63)])
    assert ops.perturb(master, live, seeds, EPS, signs, distribution=distribution) is None
    for group in range(4):
        seed = seeds[group // 2].item()
        assert torch.equal(live[group], expected_row(master, dtype, seed, EPS, signs[group].item(), distribution))
    assert torch.equal(master, before), "master is never written"


@pytest.mark.parametrize(
    ("seeds", "seed_of_row"),
    [(7, [7, 7, 7, 7]), ([7], [7, 7, 7, 7]), ([7, 8], [7, 7, 8, 8]), ([7, 8, 9, 10], [7, 8, 9, 10])],
)
def test_seeds_are_shared_by_consecutive_rows(seeds, seed_of_row):
    master, live = make_master(), poisoned(4, 37)
    seeds = seeds if isinstance(seeds, int) else torch.tensor(seeds)
    ops.perturb(master, live, seeds, EPS, torch.ones(4))
    for row, seed in zip(live, seed_of_row, strict=True):
        assert torch.equal(row, expected_row(master, torch.float32, seed, EPS, 1.0))


def test_numbers_and_device_tensors_give_the_same():
    master, signs = make_master(), torch.tensor([1.0, -1.0])
    live = poisoned(2, 2 * 37).view(2, 2, 37)
    ops.perturb(master, live[0], 3, EPS, signs)
    ops.perturb(master, live[1], torch.tensor([3]), torch.tensor([EPS]), signs)
    assert torch.equal(live[0], live[1])


def test_live_may_be_one_row():
    master, live = make_master(), poisoned(1, 37)[0]
    ops.perturb(master, live, 3, EPS, torch.ones(1))
    assert torch.equal(live, expected_row(master, torch.float32, 3, EPS, 1.0))


def test_both_signs_are_mirror_images_of_the_same_noise():
    live = poisoned(2, 1001)
    ops.perturb(torch.zeros(1001), live, 11, 1.0, torch.tensor([1.0, -1.0]))
    assert torch.equal(live[0], -live[1])
    assert torch.equal(live[0], normal(11, 1001, device=CPU))


def test_rademacher_moves_every_element_by_eps():
    live = poisoned(1, 1000)
    ops.perturb(torch.zeros(1000), live, 1, 0.25, torch.ones(1), distribution="rademacher")
    assert set(live.unique().tolist()) == {-0.25, 0.25}
    assert 400 < (live > 0).sum() < 600


@pytest.mark.parametrize("dtype", DTYPES)
def test_sign_zero_restores_exactly(dtype):
    master, live = make_master(), poisoned(2, 37, dtype)
    ops.perturb(master, live, 3, EPS, torch.tensor([1.0, -1.0]))
    ops.perturb(master, live, 3, EPS, torch.zeros(2))
    assert torch.equal(live, master.to(dtype).expand(2, -1))


def test_restore_is_exact_after_10_000_perturbations_in_bf16():
    master, live = make_master(13), poisoned(1, 13, torch.bfloat16)
    before, signs, eps = master.clone(), torch.ones(1), torch.tensor([EPS])
    for seed in torch.arange(10_000):
        ops.perturb(master, live, seed, eps, signs)
    assert not torch.equal(live[0], master.bfloat16())
    ops.perturb(master, live, 0, eps, torch.zeros(1))
    assert torch.equal(live[0], before.bfloat16())
    assert torch.equal(master, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bfloat16])
def test_signs_of_another_dtype_change_nothing(dtype):
    # in fp64 the product would not be rounded before the sum, which shows where both are of one size
    master, live = make_master(1000), poisoned(2, 1000)
    ops.perturb(master, live, 3, 0.37, torch.tensor([1, -1], dtype=dtype))
    assert torch.equal(live[1], expected_row(master, torch.float32, 3, 0.37, -1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"master": torch.zeros(8, dtype=torch.bfloat16)}, r"master must be contiguous fp32 \[P\]"),
        ({"master": torch.zeros(2, 4)}, r"master must be contiguous fp32 \[P\]"),
        ({"master": torch.zeros(16)[::2]}, r"master must be contiguous fp32 \[P\]"),
        ({"live": torch.zeros(2, 9)}, r"live must be contiguous \[G, P\] = \[2, 8\], not \(2, 9\)"),
        ({"live": torch.zeros(3, 8)}, r"live must be contiguous \[G, P\] = \[2, 8\], not \(3, 8\)"),
        ({"live": torch.zeros(8, 2).T}, r"live must be contiguous"),
        ({"live": torch.zeros(2, 8, dtype=torch.int32)}, r"live must be fp32, bf16 or fp16"),
        ({"seed": torch.tensor([1, 2, 3])}, r"3 seeds do not divide 2 signs"),
        ({"seed": torch.tensor([], dtype=torch.int64)}, r"0 seeds"),
        ({"seed": 1.5}, r"seed=1.5: must be int64, or an integer"),
        ({"seed": 1 << 63}, r"seed=9223372036854775808: must be int64, or an integer from -2\^63 to 2\^63 - 1"),
        ({"seed": torch.tensor([0.2, 0.7])}, r"seed=torch.float32 \(2,\): must be int64"),
        ({"eps": torch.tensor([1.0, 2.0])}, r"eps .* one element"),
        ({"distribution": "uniform"}, r"distribution=uniform: must be one of gaussian, rademacher"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(changes, message):
    arguments = {"master": torch.zeros(8), "live": torch.zeros(2, 8), "seed": 1, "eps": EPS, "signs": torch.ones(2)}
    with pytest.raises(InputError, match=message) as raised:
        ops.perturb(**{**arguments, **changes})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_opcheck(dtype, distribution):
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    for seeds in (torch.tensor([3]), torch.tensor([3, 4])):
        arguments = (make_master(), torch.zeros(4, 37, dtype=dtype), seeds, torch.tensor([EPS]), signs, distribution)
        torch.library.opcheck(torch.ops.xgblora.perturb.default, arguments)
