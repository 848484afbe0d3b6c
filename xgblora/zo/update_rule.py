"""How an estimated gradient moves the arena: the rule, its moments, and its step on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xgblora import ops
from xgblora.adapters.trainable import TrainableArena
from xgblora.errors import InputError, check_positive
from xgblora.ops.update import RULES, check_optimizer


@dataclass(frozen=True)
class UpdateRule:
    """An optimizer and its numbers; `xgblora.ops.update_` has the formulas and their sources.

    Attributes:
        optimizer: "sgd", "momentum" (heavy ball), "adam" (decoupled weight decay) or "sign".
        beta1: decay of the first moment; momentum and adam.
        beta2: decay of the second moment; adam.
        epsilon: added to the root of the second moment; adam.

    Raises:
        InputError: the optimizer is unknown or a number out of range.
    """

    optimizer: str = "sgd"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self):
        check_optimizer(self.optimizer)
        for name in ("beta1", "beta2"):
            check_beta(name, getattr(self, name))
        check_positive("epsilon", self.epsilon)


class ArenaOptimizer:
    """A rule at work on an arena.

    Its state is `arena.moments`, all zero where an adapter starts: `first` and `second`, fp32 [P], as the rule keeps
    them, and for Adam `weights`, fp64 [2], the sum of the weights that the terms of each moment have had so far. By
    these the moments are divided: it is Adam's bias correction `1 - beta^t`, made by the recurrence of the moments
    themselves, which needs no power and counts on the device only steps that were applied.

    Args:
        arena: of what is trained; gets fresh moments.
        rule: the optimizer and its numbers.
        distribution: of the directions.
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(self, arena: TrainableArena, rule: UpdateRule, *, distribution: str, weight_decay: float):
        self.arena, self.rule = arena, rule
        self.distribution, self.weight_decay = distribution, weight_decay
        fp32 = {"dtype": torch.float32, "device": arena.master.device}
        self._weight_decay = torch.tensor([weight_decay], **fp32)
        gain1 = 1.0 if rule.optimizer == "momentum" else 1.0 - rule.beta1
        numbers = [rule.beta1, gain1, rule.beta2, 1.0 - rule.beta2, rule.epsilon]
        kept = 2 if rule.optimizer == "momentum" else len(numbers)
        self._factors = torch.tensor(numbers[:kept], **fp32)
        self._standstill = torch.tensor([1.0, 0.0, 1.0, 0.0, rule.epsilon][:kept], **fp32)
        arena.moments = {name: torch.zeros_like(arena.master) for name in RULES[rule.optimizer][0]}
        if rule.optimizer == "adam":
            arena.moments["weights"] = torch.zeros(2, dtype=torch.float64, device=arena.master.device)

    def step(self, seeds: Tensor, projected_grads: Tensor, lr: Tensor, applied: Tensor) -> None:
        """Move `master` against `mean(g z)`, on the device, without a read-back.

        Args:
            seeds: int64 [q].
            projected_grads: fp32 [q], zero where `applied` is False.
            lr: fp32 [1].
            applied: bool scalar; False leaves `master` and the moments as they are.
        """
        moments = self.arena.moments
        with self.arena.kept():
            ops.update_(
                self.arena.master,
                seeds,
                projected_grads,
                lr=lr * applied,
                weight_decay=self._weight_decay,
                distribution=self.distribution,
                optimizer=self.rule.optimizer,
                first=moments.get("first"),
                second=moments.get("second"),
                factors=self._factors_now(applied) if moments else None,
            )

    def _factors_now(self, applied: Tensor) -> Tensor:
        factors = torch.where(applied, self._factors, self._standstill)
        if "weights" not in self.arena.moments:
            return factors
        weights = self.arena.moments["weights"]
        weights.mul_(factors[0:4:2]).add_(factors[1:4:2])
        # before the first step that was applied there is nothing to correct
        corrections = torch.where(weights == 0.0, 1.0, weights).to(torch.float32)
        return torch.cat((factors, corrections))


def check_beta(name: str, value: float) -> None:
    """Raise InputError, by the `name` of the flag or argument, unless `value` is a decay: 0 or more, below 1."""
    if not 0.0 <= value < 1.0:
        raise InputError(f"{name}={value}: must be 0 or more and below 1")
