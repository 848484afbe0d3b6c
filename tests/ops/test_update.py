import pytest
import torch

from xgblora import ops
from xgblora.errors import InputError
from xgblora.ops.noise import DISTRIBUTIONS

CPU = torch.device("cpu")
SEEDS = [11, -5, 2**62, 0]
COEFFICIENTS = [0.37, -1.9, 12.5, 3e-4]


def make_master(size=37):
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def expected(master, seeds, coefficients, lr, weight_decay, distribution):
    """The documented fixed order, every fp32 operation written out and rounded once."""
    total = torch.zeros_like(master)
    for seed, coefficient in zip(seeds, coefficients, strict=True):
        product = torch.tensor(coefficient) * DISTRIBUTIONS[distribution](seed, master.numel(), device=CPU)
        total = total + product
    mean = total / torch.tensor(float(len(seeds)))
    decayed = mean + torch.tensor(weight_decay) * master
    return master - torch.tensor(lr) * decayed


@pytest.mark.parametrize("directions", [1, 2, 3, 4])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_the_step_is_the_formula_in_the_documented_order(directions, weight_decay, distribution):
    master = make_master()
    seeds, coefficients = SEEDS[:directions], COEFFICIENTS[:directions]
    wanted = expected(master, seeds, coefficients, 0.03, weight_decay, distribution)
    ops.update_(
        master,
        torch.tensor(seeds),
        torch.tensor(coefficients),
        lr=0.03,
        weight_decay=weight_decay,
        distribution=distribution,
    )
    assert torch.equal(master, wanted)


def test_numbers_and_device_tensors_give_the_same():
    by_numbers, by_tensors = make_master(), make_master()
    ops.update_(by_numbers, 11, 0.37, lr=0.03, weight_decay=0.1)
    ops.update_(
        by_tensors,
        torch.tensor([11]),
        torch.tensor([0.37]),
        lr=torch.tensor([0.03]),
        weight_decay=torch.tensor(0.1),
    )
    assert torch.equal(by_numbers, by_tensors)


def test_zero_learning_rate_changes_nothing():
    master = make_master()
    ops.update_(master, torch.tensor(SEEDS), torch.tensor(COEFFICIENTS), lr=0.0, weight_decay=0.1)
    assert torch.equal(master, make_master())


def test_zero_coefficients_leave_weight_decay_alone():
    master = make_master()
    ops.update_(master, torch.tensor(SEEDS), torch.zeros(4), lr=0.5, weight_decay=0.5)
    assert torch.equal(master, make_master() * 0.75)


def test_the_step_undoes_the_perturbation_along_its_own_direction():
    master, live = make_master(), torch.empty(1, 37)
    ops.perturb(master, live, 9, 0.5, torch.ones(1))
    ops.update_(master, 9, -1.0, lr=0.5)
    assert torch.allclose(master, live[0], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"master": torch.zeros(8, dtype=torch.float64)}, r"master must be contiguous fp32 \[P\]"),
        ({"master": torch.zeros(16)[::2]}, r"master must be contiguous fp32 \[P\]"),
        ({"seeds": torch.tensor([1, 2])}, r"2 seeds and 1 coefficients: must be equal"),
        ({"seeds": torch.tensor([], dtype=torch.int64), "coefficients": torch.tensor([])}, r"0 seeds .* 1 or more"),
        ({"lr": torch.tensor([0.1, 0.2])}, r"lr .* one element"),
        ({"weight_decay": torch.zeros(8)}, r"weight_decay .* one element"),
        ({"distribution": "cauchy"}, r"distribution=cauchy: must be one of gaussian, rademacher"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(changes, message):
    arguments = {"master": torch.zeros(8), "seeds": torch.tensor([1]), "coefficients": torch.tensor([1.0]), "lr": 0.1}
    with pytest.raises(InputError, match=message) as raised:
        ops.update_(**{**arguments, **changes})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("directions", [1, 4])
@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_opcheck(directions, distribution):
    arguments = (
        make_master(),
        torch.tensor(SEEDS[:directions]),
        torch.tensor(COEFFICIENTS[:directions]),
        torch.tensor([0.1]),
        torch.tensor([0.01]),
        distribution,
    )
    torch.library.opcheck(torch.ops.xgblora.update_.default, arguments)
