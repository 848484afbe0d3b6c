"""Fitness shaping: rewards to the weights of members, as functions of one signature.

    shape(rewards, alive) -> weights

`rewards` is fp64 [P, C]: C rewards a member, one for each prompt or task (1 where a member has one number); higher is
better. `alive` is bool [P]: False where a reward failed, and what `rewards` has there is not to be looked at. `weights`
is fp64 [P], 0 where a member failed. With pairs, members 2i and 2i + 1 are the two signs of one perturbation.

A new one is a function here and its entry in `SHAPINGS`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Shaping = Callable[[Tensor, Tensor], Tensor]
# z-scores beyond are cut off
CLIP = 2.0


def z_score(rewards: Tensor, alive: Tensor) -> Tensor:
    """`(mean reward - mean over members) / standard deviation over members`; 0 for all where they are equal."""
    fitness = rewards.mean(1)
    return _where(alive, _divided(fitness - fitness[alive].mean(), fitness[alive]))


def centred_ranks(rewards: Tensor, alive: Tensor) -> Tensor:
    """Ranks of mean rewards, from -1/2 for the worst to 1/2 for the best (Salimans et al., 2017); ties share theirs."""
    fitness = rewards.mean(1)
    living = fitness[alive]
    below = (living.unsqueeze(0) < fitness.unsqueeze(1)).sum(1)
    equal = (living.unsqueeze(0) == fitness.unsqueeze(1)).sum(1)
    ranks = below + (equal - 1) / 2.0
    return _where(alive, ranks / max(len(living) - 1, 1) - (0.5 if len(living) > 1 else 0.0))


def prompt_baseline(rewards: Tensor, alive: Tensor) -> Tensor:
    """The mean over prompts of `reward - mean over members for this prompt`, over the deviation of all of these.

    What a prompt gives every member says nothing of members (GRPO's baseline, Shao et al., 2024; EGGROLL divides by one
    deviation for all prompts, arXiv 2511.16652).
    """
    centred = rewards - rewards[alive].mean(0, keepdim=True)
    return _where(alive, _divided(centred.mean(1), centred[alive]))


def best_of_pairs(rewards: Tensor, alive: Tensor) -> Tensor:
    """1 for the better of a pair and -1 for the other; 0 for both where they are equal or one has failed."""
    fitness, both = rewards.mean(1).view(-1, 2), alive.view(-1, 2).all(1)
    won = torch.where(both, torch.sign(fitness[:, 0] - fitness[:, 1]), 0.0)
    return torch.stack((won, -won), 1).view(-1)


def clip(rewards: Tensor, alive: Tensor) -> Tensor:
    """`z_score`, cut off at -2 and 2: one outlier does not make the step."""
    return z_score(rewards, alive).clamp(-CLIP, CLIP)


def _where(alive: Tensor, weights: Tensor) -> Tensor:
    # not a product: nan * 0 is nan
    return torch.where(alive, weights, 0.0)


def _divided(values: Tensor, of: Tensor) -> Tensor:
    """`values` over the standard deviation of `of`; 0 where there is none."""
    deviation = of.std(correction=0)
    return values / deviation if deviation > 0 else torch.zeros_like(values)


SHAPINGS: dict[str, Shaping] = {
    "z-score": z_score,
    "ranks": centred_ranks,
    "prompt-baseline": prompt_baseline,
    "best-of-pairs": best_of_pairs,
    "clip": clip,
}
# those that compare members 2i and 2i + 1
NEED_PAIRS = (best_of_pairs,)
