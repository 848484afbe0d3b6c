"""A short run of zeroth-order steps with merges, for comparisons bit for bit."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import xgblora
from benchmarks.models import random_batch, random_model
from xgblora.boosting.finish import finish
from xgblora.objectives.texts import CandidateObjective, classification


@dataclass(frozen=True)
class Trained:
    """What a run left.

    Attributes:
        losses: fp32 [steps].
        weights: all merged weights, flat, in fp32.
        values: weights, arena and moments, flat, in fp32.
        tape: its bytes.
        zo: the estimator.
    """

    losses: Tensor
    weights: Tensor
    values: Tensor
    tape: bytes
    zo: xgblora.ZeroOrder


def trained(
    device: torch.device,
    dtype: torch.dtype,
    steps: int,
    *,
    model: nn.Module | None = None,
    end: bool = False,
    **options,
) -> Trained:
    """Train for `steps` with a merge in the middle, on batches of two shapes by turns.

    Args:
        device, dtype: of the model.
        model: the base model; None makes the small one with random weights.
        end: record the end of the run, with the digest of its weights.
        options: of `ZeroOrder`.
    """
    model = random_model("small", device, dtype) if model is None else model
    objective = CandidateObjective(model, classification)
    adapters = xgblora.attach(model, alpha=16.0, seed=0)
    booster = xgblora.Booster(adapters)
    zo = xgblora.ZeroOrder(adapters, objective, **{"eps": 1e-3, "lr": 1e-4, "seed": 5, **options})
    tape = xgblora.start_tape(zo, booster)
    batches = [random_batch(model, length) for length in (24, 17)]
    losses = []
    for step in range(steps):
        losses.append(zo.step(batches[step % 2]).loss)
        if step + 1 == steps // 2:
            booster.merge(step=step + 1)
    weights = adapters.weights()
    if end:
        finish(adapters, booster, step=steps, epoch=0.0)
    arena = adapters.arena
    weights = _flat(weights)
    values = torch.cat([weights, _flat([arena.master, arena.live, *arena.moments.values()])])
    return Trained(torch.stack(losses), weights, values, tape.to_bytes(), zo)


def _flat(tensors) -> Tensor:
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors])
