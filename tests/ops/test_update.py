import numpy as np
import pytest
import torch

from xgblora import ops
from xgblora.errors import InputError
from xgblora.ops.noise import DISTRIBUTIONS
from xgblora.ops.update import RULES

CPU = torch.device("cpu")
SEEDS = [11, -5, 2**62, 0]
COEFFICIENTS = [0.37, -1.9, 12.5, 3e-4]
ADAM = torch.tensor([0.9, 1 - 0.9, 0.999, 1 - 0.999, 1e-8, 0.271, 0.002997])
MOMENTUM = torch.tensor([0.9, 1.0])


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


def moments_of(optimizer, size=37):
    """Moments after some steps, and the factors of the next."""
    generator = torch.Generator().manual_seed(1)
    moments = {name: torch.randn(size, generator=generator).square_() for name in RULES[optimizer][0]}
    return moments, {"momentum": MOMENTUM, "adam": ADAM}.get(optimizer)


def estimate(seeds, coefficients, size=37):
    """The mean of g z, as the step of SGD along it from zero shows it."""
    minus = torch.zeros(size)
    ops.update_(minus, torch.tensor(seeds), torch.tensor(coefficients), lr=1.0)
    return -minus


@pytest.mark.parametrize("directions", [1, 3])
def test_momentum_and_adam_are_their_formulas_in_the_documented_order(directions):
    seeds, coefficients = SEEDS[:directions], COEFFICIENTS[:directions]
    g, start = estimate(seeds, coefficients), make_master()
    numbers = {"lr": 0.03, "weight_decay": 0.1}
    for optimizer in ("momentum", "adam"):
        moments, factors = moments_of(optimizer)
        before = {name: moment.clone() for name, moment in moments.items()}
        master = make_master()
        ops.update_(
            master,
            torch.tensor(seeds),
            torch.tensor(coefficients),
            **numbers,
            optimizer=optimizer,
            **moments,
            factors=factors,
        )
        first = before["first"] * factors[0] + g * factors[1]
        step = first
        if optimizer == "adam":
            second = before["second"] * factors[2] + (g * g) * factors[3]
            # the quotients of fp64 values, rounded to fp32, are the correctly rounded ones (Figueroa, 1995)
            square = (second.double() / factors[6].double()).float()
            # not torch's root, which on some CPUs is the neighbour of the right one
            root = torch.from_numpy(np.sqrt(square.numpy())) + factors[4]
            step = ((first.double() / factors[5].double()).float().double() / root.double()).float()
            assert torch.equal(moments["second"], second)
        assert torch.equal(moments["first"], first)
        assert torch.equal(master, start - torch.tensor(0.03) * (step + torch.tensor(0.1) * start))


def test_sign_steps_by_the_learning_rate_along_the_sign_of_the_mean():
    master, g = make_master(), estimate(SEEDS[:3], COEFFICIENTS[:3])
    ops.update_(master, torch.tensor(SEEDS[:3]), torch.tensor(COEFFICIENTS[:3]), lr=0.25, optimizer="sign")
    assert torch.equal(master, make_master() - 0.25 * g.sign())
    ops.update_(master, 1, 0.0, lr=0.25, optimizer="sign")
    assert torch.equal(master, make_master() - 0.25 * g.sign()), "the sign of nothing is nothing"


@pytest.mark.parametrize("optimizer", RULES)
def test_decay_one_gain_zero_and_learning_rate_zero_change_nothing(optimizer):
    moments, factors = moments_of(optimizer)
    if factors is not None:
        factors = torch.cat((torch.tensor([1.0, 0.0, 1.0, 0.0])[: min(len(factors), 4)], factors[4:]))
    before = {name: moment.clone() for name, moment in moments.items()}
    master = make_master()
    ops.update_(
        master,
        torch.tensor(SEEDS),
        torch.zeros(4),
        lr=0.0,
        weight_decay=0.1,
        optimizer=optimizer,
        **moments,
        factors=factors,
    )
    assert torch.equal(master, make_master())
    assert all(torch.equal(moment, before[name]) for name, moment in moments.items())


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
        ({"seeds": torch.tensor([0.7])}, r"seed=torch.float32 \(1,\): must be int64"),
        ({"seeds": [0.7]}, r"seed=\[0.7\]: must be int64"),
        ({"lr": torch.tensor([0.1, 0.2])}, r"lr .* one element"),
        ({"weight_decay": torch.zeros(8)}, r"weight_decay .* one element"),
        ({"distribution": "cauchy"}, r"distribution=cauchy: must be one of gaussian, rademacher"),
        ({"optimizer": "lion"}, r"optimizer=lion: must be one of sgd, momentum, adam, sign"),
        ({"optimizer": "adam", "factors": ADAM, "first": torch.zeros(8)}, r"optimizer=adam needs second"),
        ({"optimizer": "momentum", "factors": MOMENTUM}, r"optimizer=momentum needs first"),
        ({"first": torch.zeros(8)}, r"optimizer=sgd takes no first"),
        ({"optimizer": "momentum", "first": torch.zeros(8)}, r"optimizer=momentum needs 2 factors, not 0"),
        ({"factors": MOMENTUM}, r"optimizer=sgd needs 0 factors, not 2"),
        ({"optimizer": "momentum", "first": torch.zeros(7), "factors": MOMENTUM}, r"first must be .* fp32 \[8\]"),
        (
            {"optimizer": "momentum", "first": torch.zeros(8), "factors": MOMENTUM.double()},
            r"factors must be contiguous fp32",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_line(changes, message):
    arguments = {"master": torch.zeros(8), "seeds": torch.tensor([1]), "coefficients": torch.tensor([1.0]), "lr": 0.1}
    with pytest.raises(InputError, match=message) as raised:
        ops.update_(**{**arguments, **changes})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("directions", [1, 4])
@pytest.mark.parametrize(
    ("distribution", "optimizer"), [("rademacher", "sgd"), *(("gaussian", name) for name in RULES)]
)
def test_opcheck(directions, distribution, optimizer):
    moments, factors = moments_of(optimizer)
    arguments = (
        make_master(),
        torch.tensor(SEEDS[:directions]),
        torch.tensor(COEFFICIENTS[:directions]),
        torch.tensor([0.1]),
        torch.tensor([0.01]),
        distribution,
        optimizer,
        moments.get("first"),
        moments.get("second"),
        factors,
    )
    torch.library.opcheck(torch.ops.xgblora.update_.default, arguments)
