"""A population for a world that is no model: a pole on a cart, balanced by four numbers.

    python examples/black_box.py

The world is a plain Python function of the numbers. It says how long the pole stood, and nothing else is known of it.
"""

import math

import torch
from torch import nn

import xgblora

MEMBERS, STEPS, LONGEST = 32, 15, 200


def world(numbers: list[float]) -> float:
    """Mean steps that the pole stands, of three starts (the equations of Barto, Sutton, Anderson, 1983)."""
    return sum(stands(numbers, angle) for angle in (-0.15, 0.02, 0.1)) / 3


def stands(numbers: list[float], angle: float) -> int:
    place = speed = turning = 0.0
    for step in range(LONGEST):
        if abs(angle) > 0.21 or abs(place) > 2.4:
            return step
        state = (place, speed, angle, turning)
        force = 10.0 if sum(n * s for n, s in zip(numbers, state, strict=True)) > 0 else -10.0
        push = (force + 0.05 * turning**2 * math.sin(angle)) / 1.1
        swing = (9.8 * math.sin(angle) - math.cos(angle) * push) / (0.5 * (4 / 3 - 0.1 * math.cos(angle) ** 2 / 1.1))
        drive = push - 0.05 * swing * math.cos(angle) / 1.1
        place, speed = place + 0.02 * speed, speed + 0.02 * drive
        angle, turning = angle + 0.02 * turning, turning + 0.02 * swing
    return LONGEST


def main() -> None:
    policy = nn.ModuleDict({"policy": nn.Linear(4, 1, bias=False)})
    nn.init.zeros_(policy["policy"].weight)
    adapters = xgblora.attach(policy, ["policy"], alpha=1.0)
    booster = xgblora.Booster(adapters)
    population = xgblora.Population(adapters, booster, sigma=0.3, lr=0.5, shaping="ranks")
    (weight,) = adapters.weights()

    def numbers_of(member: dict[str, torch.Tensor]) -> list[float]:
        a, b = (next(part for name, part in member.items() if name.endswith(f"lora_{one}.weight")) for one in "AB")
        return (weight + b @ a)[0].tolist()

    print(f"before: the pole stands for {world(weight[0].tolist()):.0f} steps of {LONGEST}")
    for step in range(1, STEPS + 1):
        members = population.ask(MEMBERS)
        told = population.tell([world(numbers_of(members.tensors(number))) for number in range(MEMBERS)])
        if step % 5 == 0:
            print(f"step {step}: mean of the members {told.mean:.0f}, of the policy {world(weight[0].tolist()):.0f}")
    print(
        f"ledger: {len(booster.ledger)} boosters, {sum(len(one.seeds) for one in booster.boosters) * 12} bytes of them"
    )


if __name__ == "__main__":
    main()
