"""`update_` by the host extension against the eager reference: the same bits."""

import itertools

import pytest
import torch

from xgblora.ops.backends.host import update_
from xgblora.ops.eager import eager
from xgblora.ops.noise import DISTRIBUTIONS
from xgblora.ops.update import RULES

SEEDS = torch.tensor([11, -5, 2**62, 0, 9])
COEFFICIENTS = torch.tensor([0.37, -1.9, 12.5, 3e-4, -0.0])
FACTORS = {
    "momentum": torch.tensor([0.9, 1.0]),
    "adam": torch.tensor([0.9, 1 - 0.9, 0.999, 1 - 0.999, 1e-8, 0.271, 0.002997]),
}
SIZES = (0, 1, 2, 3, 255, 256, 257, 1021)


def state(optimizer, size, place=lambda values: values):
    """The master and the moments after some steps, each put where `place` puts it."""
    generator = torch.Generator().manual_seed(size)
    master = place(torch.randn(size, generator=generator))
    return [master, *(place(torch.randn(size, generator=generator).square_()) for _ in RULES[optimizer][0])]


def step(function, tensors, optimizer, directions, distribution="gaussian", lr=0.03, weight_decay=0.1):
    """A step of `function` over `tensors`, the master and the moments, in place; gives them back."""
    master, first, second = [*tensors, None, None][:3]
    numbers = torch.tensor([lr]), torch.tensor([weight_decay]), distribution, optimizer
    function(master, SEEDS[:directions], COEFFICIENTS[:directions], *numbers, first, second, FACTORS.get(optimizer))
    return tensors


def all_equal(ours, theirs):
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("optimizer", RULES)
def test_any_size_rule_and_number_of_directions(instruction_set, optimizer):
    for size, directions, distribution in itertools.product(SIZES, (1, 5), DISTRIBUTIONS):
        results = []
        for function in (update_, eager("update_")):
            tensors = state(optimizer, size)
            for _ in range(2):
                step(function, tensors, optimizer, directions, distribution)
            results.append(tensors)
        assert all_equal(*results)


@pytest.mark.parametrize("optimizer", RULES)
def test_nothing_else_is_written_and_addresses_may_be_odd(instruction_set, inside_poison, optimizer):
    for size in (1, 257, 1000):
        storages = []

        def place(values, storages=storages):
            values, storage = inside_poison(values)
            storages.append(storage)
            return values

        tensors = step(update_, state(optimizer, size, place), optimizer, 2)
        assert all_equal(tensors, step(eager("update_"), state(optimizer, size), optimizer, 2))
        for tensor, storage in zip(tensors, storages, strict=True):
            tensor.fill_(12345.0)
            assert (storage == 12345.0).all()


def test_numbers_at_the_edges(instruction_set):
    # moments of which the root is subnormal, masters that are infinite, a rate that overflows
    edges = torch.tensor([0.0, -0.0, 1e-45, 1e-38, 3e38, -3e38, float("inf"), 1.0]).repeat(40)
    for optimizer, lr in itertools.product(RULES, (0.0, 0.03, 3e38)):
        results = []
        for function in (update_, eager("update_")):
            tensors = [edges.clone(), *(edges.abs() for _ in RULES[optimizer][0])]
            results.append([tensor.nan_to_num(7.0) for tensor in step(function, tensors, optimizer, 2, lr=lr)])
        assert all_equal(*results)


def test_the_number_of_threads_changes_no_bit(threads):
    wanted = step(eager("update_"), state("adam", 300_001), "adam", 2)
    for count in (1, 2, 5):
        threads(count)
        assert all_equal(step(update_, state("adam", 300_001), "adam", 2), wanted)


def test_seeds_and_coefficients_with_gaps_between_them():
    results = []
    for function in (update_, eager("update_")):
        master, one = torch.ones(300), torch.ones(1)
        function(master, SEEDS[::2], COEFFICIENTS[::2], one, one, "gaussian", "sgd", None, None, None)
        results.append(master)
    assert torch.equal(*results)
