"""Boosting with rank-1 adapters, by hand: forward passes alone, in plain torch.

    python examples/boosting_by_hand.py

A linear layer is to become another one that differs from it by a matrix of rank 4. Each round trains one rank-1 adapter
by MeZO's step and merges it; what is left to learn shrinks from round to round. `xgblora.attach`, `ZeroOrder` and
`Booster` do this in any model, exactly in 16 bits, recorded, and on a GPU without waiting for it.
"""

import torch

SIZE, RANK, ROUNDS, STEPS = 16, 4, 6, 400
EPS, RATE, SCALE = 1e-3, 4e-3, 1.0


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SIZE, SIZE, generator=generator) / SIZE**0.5
    left, right = torch.randn(SIZE, RANK, generator=generator), torch.randn(RANK, SIZE, generator=generator)
    target = weight + left @ right / SIZE
    inputs = torch.randn(256, SIZE, generator=generator)
    outputs = inputs @ target.T
    print(f"round 0: loss {loss_of(weight, None, inputs, outputs):.4f}")
    for round in range(1, ROUNDS + 1):
        # b is zero, so that a round begins with the function of the last one
        adapter = torch.cat((torch.randn(SIZE, generator=generator) / SIZE**0.5, torch.zeros(SIZE)))
        for step in range(STEPS):
            adapter = one_step(adapter, weight, inputs, outputs, seed=1000 * round + step)
        a, b = adapter.split(SIZE)
        weight = weight + SCALE * torch.outer(b, a)
        print(f"round {round}: loss {loss_of(weight, None, inputs, outputs):.4f}")


def one_step(adapter, weight, inputs, outputs, seed: int):
    """The losses on both sides along the noise of `seed`, and a step against the slope."""
    noise = torch.randn(adapter.shape, generator=torch.Generator().manual_seed(seed))
    above = loss_of(weight, adapter + EPS * noise, inputs, outputs)
    below = loss_of(weight, adapter - EPS * noise, inputs, outputs)
    return adapter - RATE * (above - below) / (2 * EPS) * noise


def loss_of(weight, adapter, inputs, outputs):
    """The mean squared error of the layer, with the adapter beside its weight unless that is None."""
    y = inputs @ weight.T
    if adapter is not None:
        a, b = adapter.split(SIZE)
        y = y + SCALE * (inputs @ a)[:, None] * b
    return (y - outputs).square().sum(dim=1).mean()


if __name__ == "__main__":
    main()
