"""`Population`: evolution strategies over the adapters or the weights of a model, in the words ask and tell.

    members = population.ask(64)
    population.tell([score(members, number) for number in range(64)])

Evolution strategies (Rechenberg; Salimans et al., 2017) with perturbations of rank 1 (EGGROLL, arXiv 2511.16652).
What a step does is `lr * mean_i(weight_i * perturbation_i / sigma)`, the weight of a member being its shaped fitness:
with weights that do not depend on the rewards' unit, the length of a step depends on `lr` alone, not on `sigma`.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xgblora.adapters import AdapterSet
from xgblora.boosting import Booster
from xgblora.errors import InputError, check_not_negative, check_positive
from xgblora.ops.noise import derive_seed
from xgblora.population.kinds import KINDS
from xgblora.population.members import Members
from xgblora.population.shaping import NEED_PAIRS, SHAPINGS, Shaping

logger = logging.getLogger("xgblora")

Schedule = float | Callable[[int], float]


@dataclass(frozen=True)
class Told:
    """What came of a step.

    Attributes:
        step: of the population, 0 for the first.
        round: the booster that it made; None where it made none.
        mean, best: of the rewards of members that did not fail; NaN where all did.
        best_member: the number of the best; None where all failed.
        failed: how many failed.
        updated: whether anything was changed.
        sigma, lr: the size of the perturbation and the length of the step.
    """

    step: int
    round: int | None
    mean: float
    best: float
    best_member: int | None
    failed: int
    updated: bool
    sigma: float
    lr: float


class Population:
    """Members to be scored, and the step that their fitness makes.

    Args:
        adapters: of the model; for kind "weights" of rank 1, and every weight can be written.
        booster: over them. With kind "weights" each step is one booster of its ledger.
        sigma: size of the perturbation, or a function of the step (0 for the first).
        lr: length of a step, likewise.
        kind: what members perturb: "weights" (`W + sigma * sign * outer(b, a)`, both noise) or "adapter" (the numbers
            of the adapter in training, which `booster.merge` merges as ever).
        pairs: members 2i and 2i + 1 are the two signs of one perturbation.
        shaping: one of `SHAPINGS`, or a function of their signature.
        decay: what all earlier boosters are multiplied with when a step is merged; kind "weights".
        noise_reuse: steps that share one draw of noise.
        seed: of the noise, any integer; member i of step t draws from (seed, t // noise_reuse, i).

    Attributes:
        step: steps so far, those that changed nothing too. Whoever resumes sets it where steps after the last booster
            changed nothing; else it follows from the ledger.

    Raises:
        InputError: an argument is unknown or out of range, or the booster cannot take such members.
    """

    def __init__(
        self,
        adapters: AdapterSet,
        booster: Booster,
        *,
        sigma: Schedule,
        lr: Schedule,
        kind: str = "weights",
        pairs: bool = True,
        shaping: str | Shaping = "z-score",
        decay: float = 1.0,
        noise_reuse: int = 1,
        seed: int = 0,
    ):
        if booster.adapters is not adapters:
            raise InputError("booster: must be over the adapters that are given")
        if kind not in KINDS:
            raise InputError(f"kind={kind}: must be one of {', '.join(KINDS)}")
        if not callable(shaping) and shaping not in SHAPINGS:
            raise InputError(f"shaping={shaping}: must be one of {', '.join(SHAPINGS)}, or a function")
        if isinstance(noise_reuse, bool) or not isinstance(noise_reuse, int) or noise_reuse < 1:
            raise InputError(f"noise_reuse={noise_reuse}: must be a whole number, 1 or more")
        self.shaping = shaping if callable(shaping) else SHAPINGS[shaping]
        if self.shaping in NEED_PAIRS and not pairs:
            raise InputError(f"shaping={shaping}: compares the two of a pair; needs pairs=True")
        for name, value in (("sigma", sigma), ("lr", lr)):
            if not callable(value):
                check_positive(name, value)
        KINDS[kind].check(booster, decay)
        self.adapters, self.booster, self.kind = adapters, booster, KINDS[kind]
        self.sigma, self.lr, self.pairs = sigma, lr, pairs
        self.decay, self.noise_reuse, self.seed = decay, noise_reuse, seed
        self.step = booster.boosters[-1].step if booster.boosters else 0
        self._asked: Members | None = None

    def ask(self, count: int, *, sigma: float | None = None) -> Members:
        """The members of this step: the same ones until `tell`, whoever asks.

        Args:
            count: how many, 2 or more; even with pairs.
            sigma: in place of the population's own.

        Raises:
            InputError: `count` or `sigma` is out of range, or the booster cannot take such members.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 2:
            raise InputError(f"a population of {count}: must be a whole number, 2 or more")
        if self.pairs and count % 2:
            raise InputError(f"a population of {count}: must be even with pairs, {count - 1} or {count + 1}")
        self.kind.check(self.booster, self.decay)
        size = _at("sigma", self.sigma if sigma is None else sigma, self.step)
        members = torch.arange(count)
        draws = members // 2 if self.pairs else members
        draw = self.step // self.noise_reuse
        seeds = torch.tensor([derive_seed(self.seed, draw, number) for number in draws.tolist()])
        signs = 1.0 - 2.0 * (members % 2) if self.pairs else torch.ones(count)
        self._asked = Members(self.booster, self.kind, self.step, seeds, signs, size)
        return self._asked

    def tell(self, fitness: Sequence | Tensor, *, lr: float | None = None) -> Told:
        """Make the step that the fitness of the members asked for says.

        A member failed where a reward is None or not finite: it is counted, its weight is 0, and it is never best. If
        all failed, or all weights are 0, nothing changes but `step`, and one line in the log says so. Nor does anything
        at a rate of 0, as schedules have it at their ends.

        Args:
            fitness: P rewards, or P rows of as many rewards each (one a prompt); higher is better.
            lr: in place of the population's own.

        Raises:
            InputError: there was no `ask`, the numbers do not fit the members, or `lr` is out of range.
            MergeOverflow: a weight would pass the range of its dtype; nothing was changed.
        """
        members = self._asked
        if members is None:
            raise InputError("tell: there are no members; ask first")
        rate = _at("lr", self.lr if lr is None else lr, self.step, check_not_negative)
        rewards = _as_rewards(fitness, len(members))
        alive = rewards.isfinite().all(1)
        weights = self.shaping(rewards, alive) if alive.any() else torch.zeros(len(members), dtype=torch.float64)
        weights = torch.where(alive, weights, 0.0)
        better = bool(weights.any())
        self._report(alive, better)
        updated = better and rate > 0.0
        round = self._update(members, weights * (rate / max(int(alive.sum()), 1))) if updated else None
        made = {"step": self.step, "round": round, "updated": updated, "sigma": members.sigma, "lr": rate}
        told = _told(rewards.mean(1), alive, **made)
        self.step, self._asked = self.step + 1, None
        return told

    def _update(self, members: Members, weights: Tensor) -> int | None:
        signed = weights * members.signs
        if self.pairs:
            signed = signed[0::2] + signed[1::2]
        seeds = members.seeds[:: 2 if self.pairs else 1]
        return self.kind.step(self.booster, seeds, signed.float(), step=self.step + 1, decay=self.decay)

    def _report(self, alive: Tensor, better: bool) -> None:
        failed, where = int((~alive).sum()), f"XGBLoRA: population, step {self.step + 1}"
        if failed == len(alive):
            logger.warning("%s: all %d members failed, no update", where, failed)
        elif not better:
            logger.warning("%s: no member is better than another, no update (%d failed)", where, failed)
        elif failed:
            logger.warning("%s: %d of %d members failed", where, failed, len(alive))


def _as_rewards(fitness: Sequence | Tensor, count: int) -> Tensor:
    """fp64 [P, C] on the host, NaN for what is None."""
    if not isinstance(fitness, Tensor):
        rows = [list(row) if isinstance(row, (Sequence, Tensor)) else [row] for row in fitness]
        try:
            fitness = torch.tensor(
                [[math.nan if one is None else float(one) for one in row] for row in rows], dtype=torch.float64
            )
        except (TypeError, ValueError):
            raise InputError("fitness: must be numbers or None, one a member or a row of equal length each") from None
    rewards = fitness.detach().to("cpu", torch.float64)
    rewards = rewards.unsqueeze(1) if rewards.ndim == 1 else rewards
    if rewards.ndim != 2 or rewards.shape[0] != count or not rewards.shape[1]:
        raise InputError(
            f"fitness of shape {tuple(fitness.shape)}: must be [{count}] or [{count}, C], one row a member"
        )
    return rewards


def _told(rewards: Tensor, alive: Tensor, **made) -> Told:
    failed = int((~alive).sum())
    if failed == len(alive):
        return Told(mean=math.nan, best=math.nan, best_member=None, failed=failed, **made)
    best = int(torch.where(alive, rewards, -math.inf).argmax())
    mean = float(rewards[alive].mean())
    return Told(mean=mean, best=float(rewards[best]), best_member=best, failed=failed, **made)


def _at(name: str, schedule: Schedule, step: int, check: Callable[[str, float], None] = check_positive) -> float:
    value = schedule(step) if callable(schedule) else schedule
    check(name, value)
    return float(value)
