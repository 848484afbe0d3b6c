"""Toys whose training takes milliseconds, and a layer whose weight cannot be written."""

import pytest
import torch
from torch import nn

import xgblora


class Int8Linear(nn.Module):
    """A linear layer that keeps its weight in int8 with one fp32 scale, as quantised layers do."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.detach().abs().max() / 127
        self.register_buffer("weight", (linear.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


@pytest.fixture
def quantise():
    """A function that puts `Int8Linear` in the place of every linear layer called q_proj or v_proj, in place."""

    def replace(model: nn.Module) -> nn.Module:
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if name in ("q_proj", "v_proj"):
                    setattr(module, name, Int8Linear(child))
        return model

    return replace


class Toy(nn.Module):
    """Two linear layers whose sizes are multiples of nothing, and a loss [B] over them: `model(x)` for x [B, 5]."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(5, 3), nn.Linear(3, 7)
        self.to(dtype)

    def forward(self, x):
        y = self.second(torch.tanh(self.first(x.to(self.first.bias.dtype))))
        return (y.float() - 1).square().mean(dim=1)


@pytest.fixture
def make_toy():
    """A function `(dtype, seed)` that makes a `Toy`."""
    return Toy


@pytest.fixture
def train_toy():
    """A function that trains a `Toy` by zeroth order with a tape, 3 merges and a rest, and gives its booster.

    The losses of the steps in `skipped` are not finite.
    """

    def train(
        *,
        dtype=torch.float32,
        rounding="remainder",
        directions=1,
        rank=1,
        steps=14,
        skipped=(),
        seed=5,
        rollback=None,
        optimizer="sgd",
        reinit="kaiming",
        colsample=1.0,
        shrinkage=1.0,
        **estimate,
    ) -> xgblora.Booster:
        def objective(model, batch):
            return model(batch["x"]) * (float("nan") if zo.step_index in skipped else 1.0)

        adapters = xgblora.attach(Toy(dtype), ["first", "second"], alpha=2.0, rank=rank, seed=seed)
        booster = xgblora.Booster(adapters, rounding=rounding, reinit=reinit, colsample=colsample)
        zo = xgblora.ZeroOrder(
            adapters,
            objective,
            eps=1e-2,
            lr=0.05,
            directions=directions,
            seed=seed,
            weight_decay=0.01,
            optimizer=optimizer,
            **estimate,
        )
        xgblora.start_tape(zo, booster)
        generator = torch.Generator().manual_seed(seed)
        for step in range(1, steps + 1):
            zo.estimate({"x": torch.randn(4, 5, generator=generator)})
            zo.update(lr=0.05 / step)
            if step % 4 == 0:
                booster.merge(step=step, shrinkage=shrinkage)
            if step == rollback:
                booster.rollback(round=1)
        return booster

    return train


@pytest.fixture
def trained(make_model, randomise_adapters):
    """A function that makes a model after one merge, with adapters trained further, and its booster."""

    def make(dtype=torch.float32):
        model = make_model(dtype=dtype)
        adapters = xgblora.attach(model, alpha=2.0)
        booster = xgblora.Booster(adapters)
        randomise_adapters(adapters, seed=0)
        booster.merge(step=1, epoch=0.5)
        randomise_adapters(adapters, seed=1)
        return model, adapters, booster

    return make
