"""A fair comparison from Python: boosting against one adapter, each at its own best rate.

    python examples/fair_comparison.py

Both methods see the same data, noise and number of forwards. The rate of each is chosen on development data over all
seeds, and figures are of held-out data, which chose nothing. `xgblora-compare` does this for models and tasks.
"""

from statistics import fmean, stdev

import torch
from torch import nn

import xgblora

SIZE, STEPS, STEPS_OF_A_ROUND = 12, 400, 100
RATES, SEEDS = (1e-1, 2e-1, 4e-1), (0, 1, 2)


class Layer(nn.Module):
    """A linear layer, to be moved to another one that differs from it by a matrix of rank 4."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.linear = nn.Linear(SIZE, SIZE, bias=False)
        self.linear.weight.data = torch.randn(SIZE, SIZE, generator=generator) / SIZE**0.5
        factors = torch.randn(2, SIZE, 4, generator=generator)
        self.target = self.linear.weight.data + factors[0] @ factors[1].T / SIZE

    def forward(self, x):
        return self.linear(x)


def loss(model, batch):
    """Losses [B] of a batch of inputs and outputs."""
    return (model(batch["x"]) - batch["y"]).square().mean(dim=1)


def run(boosts: bool, rate: float, seed: int) -> dict[str, float]:
    """The losses on development and held-out data after training."""
    generator = torch.Generator().manual_seed(seed)
    model = Layer(generator)
    sets = {name: torch.randn(64, SIZE, generator=generator) for name in ("train", "dev", "held-out")}
    batches = {name: {"x": x, "y": x @ model.target.T} for name, x in sets.items()}
    adapters = xgblora.attach(model, ["linear"], alpha=1.0, seed=seed)
    zo, booster = xgblora.ZeroOrder(adapters, loss, lr=rate, seed=seed), xgblora.Booster(adapters)
    for step in range(1, STEPS + 1):
        zo.step(batches["train"])
        if boosts and step % STEPS_OF_A_ROUND == 0:
            booster.merge(step=step)
    with torch.no_grad():
        return {name: loss(model, batches[name]).mean().item() for name in ("dev", "held-out")}


def main() -> None:
    for name, boosts in (("one adapter", False), ("boosting", True)):
        by_rate = {rate: [run(boosts, rate, seed) for seed in SEEDS] for rate in RATES}
        best = min(RATES, key=lambda rate, runs=by_rate: fmean(run["dev"] for run in runs[rate]))
        losses = [run["held-out"] for run in by_rate[best]]
        error = stdev(losses) / len(losses) ** 0.5
        print(f"{name:12} rate {best:g}: held-out loss {fmean(losses):.4f}, standard error {error:.4f}")


if __name__ == "__main__":
    main()
