"""Small worlds for populations."""

import pytest
import torch
from torch import nn

import xgblora


@pytest.fixture
def world():
    """A function that makes two layers, their booster, and the reward of weights: how near they are to a goal."""

    def make(dtype=torch.float32, **options):
        torch.manual_seed(0)
        model = nn.ModuleDict({"first": nn.Linear(6, 5), "second": nn.Linear(5, 9)}).to(dtype)
        adapters = xgblora.attach(model, ["first", "second"], alpha=4.0, seed=3)
        return xgblora.Booster(adapters, **options)

    return make


@pytest.fixture
def climb():
    """A function that takes steps towards weights of 0.3 everywhere, and gives the mean reward of each."""

    def run(population, steps, count=16):
        means = []
        for _ in range(steps):
            members = population.ask(count)
            rewards = [reward_of(population.booster, members.adapter(number)) for number in range(count)]
            means.append(population.tell(rewards).mean)
        return means

    return run


def reward_of(booster, adapter):
    total = 0.0
    for slot, layer in zip(booster.adapters.arena.slots, booster.adapters.layers.values(), strict=True):
        a, b = slot.views(adapter.unsqueeze(0))
        weight = layer.weight.float() + booster.adapters.scale * b[0].T @ a[0]
        total -= float((weight - 0.3).square().sum())
    return total
