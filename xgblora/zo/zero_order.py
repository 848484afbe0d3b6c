"""`ZeroOrder`: training by forward passes alone.

Two-sided simultaneous perturbation (SPSA, Spall 1992) as MeZO (Malladi et al. 2023) applies it to language models,
over the adapters' arena. For each of q directions z the loss is taken at `master + eps z` and `master - eps z`; their
difference over `2 eps` is the projected gradient g, and `mean(g z)` the gradient that an optimizer steps against.
One-sided, the losses at `master + eps z` and one at `master` make q + 1 forwards of it, and the gradient may be
divided by the standard deviation of the q losses (FZOO, Dang et al. 2025, arXiv:2506.09034, with Rademacher signs).

The step reads nothing back from the device: losses, projected gradients, the learning rate and the test for
non-finite losses all stay there. On a GPU its two halves, the losses of a batch and the update, are captured as CUDA
graphs (`xgblora.zo.step_graphs`).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xgblora.adapters import Trainable
from xgblora.errors import InputError, check_not_negative, check_positive
from xgblora.ops.noise import derive_seed
from xgblora.ops.perturb import check_distribution
from xgblora.zo.cuda_recorder import CudaRecorder
from xgblora.zo.step_graphs import StepGraphs
from xgblora.zo.tape import Tape
from xgblora.zo.update_rule import ArenaOptimizer, UpdateRule

logger = logging.getLogger("xgblora")

Objective = Callable[[Any, Any], Tensor]
PAIRINGS = ("auto", "paired", "sequential")
CAPTURES = ("auto", "never")
# A stacked forward needs the activations of 2q batches at once. Past this many input elements a batch fills the
# device by itself and stacking saves nothing.
AUTO_PAIRING_ELEMENTS = 1 << 14


@dataclass(frozen=True)
class StepResult:
    """What a step decided; tensors on the device, so that reading them is the caller's choice.

    Attributes:
        loss: fp32 scalar, the mean of the losses of all forwards.
        projected_grad: fp32 [q]; zero for a step that was skipped.
    """

    loss: Tensor
    projected_grad: Tensor


class ZeroOrder:
    """SPSA over the adapters of a model.

    The model is put into eval mode (no dropout), and its layers read `arena.live` from now on; before training the same
    adapters by backpropagation, call `adapters.arena.read_master()`.

    Args:
        adapters: what `xgblora.attach` returned, or `xgblora.FullParameters(model)`.
        objective: `(model, batch) -> losses`: [B], one loss an example, or a scalar; need not be differentiable.
        eps: size of the perturbation.
        lr: learning rate; `update` takes another for a single step.
        directions: q, random directions a step.
        pairing: "paired" stacks both signs and all directions along the batch in one forward; it needs a batch that
            is a mapping of tensors with the examples first, and a loss an example. "sequential" runs them one after
            the other. "auto" pairs where the batch and the objective allow it and the batch is small.
        optimizer: "sgd", "momentum", "adam", "sign", or an `UpdateRule` with numbers of its own. Moments are forgotten
            when a merge or a rollback starts a new adapter.
        seed: the directions of step t are noise of (seed, t), see `direction_seeds`.
        weight_decay: decoupled, as in AdamW.
        distribution: "gaussian" or "rademacher".
        two_sided: losses on both sides of `master` in every direction (2q forwards), or on one side of it and one loss
            at `master` itself for all (q + 1).
        normalise: divide the projected gradients by the standard deviation of the losses; one-sided, q > 1. It is
            about eps times the size of the gradient, so learning rates are about eps times smaller.
        capture: "auto" captures the step as CUDA graphs on a GPU, where that gives the same bits; "never" does not. A
            captured objective is called a few times for each batch shape, and then no more: what else it does, such
            as counting its calls, is not repeated.

    Attributes:
        forwards: 2q or q + 1, forwards a step.
        graphs: the step's CUDA graphs; None on a CPU and with `capture="never"`.
        optimizer: the rule at work, with its moments.
        tape: where steps are recorded, None unless `xgblora.start_tape` began one.
        skipped_steps: int64 scalar on the device: steps whose losses were not finite.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        adapters: Trainable,
        objective: Objective,
        *,
        eps: float = 1e-3,
        lr: float = 1e-4,
        directions: int = 1,
        pairing: str = "auto",
        optimizer: str | UpdateRule = "sgd",
        seed: int = 0,
        weight_decay: float = 0.0,
        distribution: str = "gaussian",
        two_sided: bool = True,
        normalise: bool = False,
        capture: str = "auto",
    ):
        _check_arguments(eps, lr, directions, pairing, weight_decay, capture)
        check_distribution(distribution)
        check_normalise("normalise", normalise, two_sided, directions)
        rule = optimizer if isinstance(optimizer, UpdateRule) else UpdateRule(optimizer)
        if not adapters.arena.stacks:
            if pairing == "paired":
                raise InputError("pairing=paired: full parameters hold one sign at a time; use sequential or auto")
            pairing = "sequential"
        self.adapters, self.objective = adapters, objective
        self.directions, self.pairing, self.seed = directions, pairing, seed
        self.optimizer = ArenaOptimizer(adapters.arena, rule, distribution=distribution, weight_decay=weight_decay)
        self.two_sided, self.normalise = two_sided, normalise
        self.forwards = 2 * directions if two_sided else directions + 1
        self.step_index = 0
        self.tape: Tape | None = None
        device = adapters.arena.master.device
        fp32 = {"dtype": torch.float32, "device": device}
        self._eps = torch.tensor([eps], **fp32)
        self._lr = torch.tensor([lr], **fp32)
        # the last row of a one-sided step is `master` itself, the sign 0 of a seed that nobody reads
        signs = [1.0, -1.0] * directions if two_sided else [1.0] * directions + [0.0]
        self._signs = torch.tensor(signs, **fp32)
        seeds = directions if two_sided else self.forwards
        self._seeds = torch.zeros(seeds, dtype=torch.int64, device=device)
        self._losses = torch.zeros(self.forwards, **fp32)
        self._first_seed = 0
        self._weight = 0.0
        self._announced: set[str] = set()
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=device)
        self._base = [*adapters.model.parameters(), *adapters.model.buffers()]
        captures = capture == "auto" and device.type == "cuda"
        self.graphs = StepGraphs(CudaRecorder(device), device, self._tensors) if captures else None
        adapters.model.eval()
        adapters.arena.allocate_live(self.forwards, adapters.compute_dtype)
        adapters.arena.read_one_row()

    @torch.no_grad()
    def step(self, batch: Any) -> StepResult:
        """One step on one batch: `estimate`, then `update`."""
        self.estimate(batch)
        return self.update()

    @torch.no_grad()
    def estimate(self, batch: Any, weight: float = 1.0) -> Tensor:
        """Add the losses of every sign and direction on `batch` to those of the step; several batches accumulate.

        Args:
            batch: what the objective takes.
            weight: share of this batch in the mean over the batches of the step.

        Returns:
            fp32 scalar on the device: the mean loss of this batch over all forwards.
        """
        if self._weight == 0.0:
            self._start_step()
        if self.adapters.model.training:
            self.adapters.model.eval()
        try:
            (losses,) = self._run(("losses", self.pairing, self._active_layers()), self._losses_of, batch)
        except BaseException:
            self.abandon_step()
            raise
        finally:
            self.adapters.arena.read_one_row()
        self._losses.add_(losses, alpha=weight)
        self._weight += weight
        return losses.mean()

    @torch.no_grad()
    def update(self, lr: float | None = None) -> StepResult:
        """Step along the estimated gradient and restore `live` to the new `master`.

        A step with a non-finite loss or projected gradient changes nothing and adds one to `skipped_steps`.

        Args:
            lr: learning rate from now on; None keeps the last.

        Raises:
            InputError: no loss was estimated since the last update.
        """
        if self._weight == 0.0:
            raise InputError("ZeroOrder.update: call estimate(batch) first")
        if lr is not None:
            self._lr.fill_(lr)
        self._losses.div_(self._weight)
        arena = self.adapters.arena
        if arena.stacks:
            state = (arena.master, *arena.moments.values(), self.skipped_steps)
            loss, projected, finite = self._run("update", self._apply, {}, state)
        else:
            # to compare a graph would take two more copies of all parameters, and their update is no small launch
            loss, projected, finite = self._apply({})
        if self.tape is not None:
            self.tape.record_step(self.step_index, self._first_seed, self._lr, finite, projected)
        self.step_index += 1
        self._weight = 0.0
        return StepResult(loss=loss, projected_grad=projected)

    def abandon_step(self) -> None:
        """Forget the batches estimated since the last update; the model is the unperturbed one again."""
        self._weight = 0.0
        self.adapters.arena.restore()

    def _run(self, part: Any, work: Callable, inputs: Any, state: tuple[Tensor, ...] = ()) -> tuple[Tensor, ...]:
        return work(inputs) if self.graphs is None else self.graphs.run(part, work, inputs, state)

    def _tensors(self) -> list[Tensor]:
        """What the captured work reads or writes by its address and others might replace."""
        arena = self.adapters.arena
        banks = [part for layer in self.adapters.layers.values() for part in layer.bank or ()]
        untrained = getattr(arena, "untrained", None)
        masks = [] if untrained is None else [untrained]
        return [*self._base, *banks, *masks, arena.master, arena.live, *arena.moments.values(), self.skipped_steps]

    def _active_layers(self) -> tuple[bool, ...]:
        return tuple(layer.active for layer in self.adapters.layers.values())

    def _start_step(self) -> None:
        self._first_seed = derive_seed(self.seed, self.step_index, 0)
        # from pinned memory, so that the host does not wait for the copy
        seeds = torch.tensor(direction_seeds(self._first_seed, len(self._seeds)), pin_memory=self._seeds.is_cuda)
        self._seeds.copy_(seeds, non_blocking=True)
        self._losses.zero_()
        self.adapters.arena.perturb(self._seeds, self._eps, self._signs, self.optimizer.distribution)

    def _losses_of(self, batch: Any) -> tuple[Tensor]:
        """fp32 [forwards]: the mean loss of the batch for each row of `live`."""
        return (self._paired_losses(batch) if self._should_pair(batch) else self._sequential_losses(batch),)

    def _apply(self, _: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Move `master` by the losses of the step; their mean, the projected gradients [q], and whether it moved."""
        projected = self._projected_grads(self._losses)
        # a difference of finite losses may overflow too
        finite = projected.isfinite().all()
        projected = torch.where(finite, projected, 0.0)
        self.optimizer.step(self._seeds[: self.directions], projected, self._lr, finite)
        self.skipped_steps.add_(~finite)
        self.adapters.arena.restore()
        return self._losses.mean(), projected, finite

    def _projected_grads(self, losses: Tensor) -> Tensor:
        if self.two_sided:
            pairs = losses.view(self.directions, 2)
            return (pairs[:, 0] - pairs[:, 1]) / (2.0 * self._eps)
        perturbed, base = losses[:-1], losses[-1]
        projected = (perturbed - base) / self._eps
        if not self.normalise:
            return projected
        spread = perturbed.std()
        # losses that are all the same point nowhere
        return torch.where(spread == 0.0, 0.0, projected / spread)

    def _should_pair(self, batch: Any) -> bool:
        if self.pairing == "sequential":
            return False
        if not is_stackable(batch):
            if self.pairing == "paired":
                raise InputError("pairing=paired: the batch must be a mapping of tensors with equal first dimensions")
            self._announce("ZO: signs and directions run one after the other (the batch cannot be stacked)")
            return False
        if self.pairing == "auto":
            elements = max(value.numel() for value in batch.values() if isinstance(value, Tensor))
            return elements * self.forwards <= AUTO_PAIRING_ELEMENTS
        return True

    def _paired_losses(self, batch: Any) -> Tensor:
        groups = self.forwards
        losses = self._losses_with(0, groups, stacked(batch, groups))
        if losses.shape[:1] != (groups * _examples(batch),):
            if self.pairing == "paired":
                raise InputError(
                    f"pairing=paired: the objective must return one loss an example, not shape {tuple(losses.shape)}"
                )
            self._announce("ZO: signs and directions run one after the other (the objective gives no loss an example)")
            self.pairing = "sequential"
            return self._sequential_losses(batch)
        return losses.float().view(groups, -1).mean(dim=1)

    def _sequential_losses(self, batch: Any) -> Tensor:
        losses = [self._losses_with(row, row + 1, batch).float().mean() for row in range(self.forwards)]
        return torch.stack(losses)

    def _losses_with(self, start: int, stop: int, batch: Any) -> Tensor:
        """What the objective gives for `batch` while the model reads these rows of `live`."""
        self.adapters.arena.read_live(start, stop)
        with self.adapters.arena.while_unchanged():
            return self.objective(self.adapters.model, batch)

    def _announce(self, message: str) -> None:
        if message not in self._announced:
            self._announced.add(message)
            logger.info(message)


def direction_seeds(first: int, directions: int) -> list[int]:
    """The seeds of a step's directions: the first of them gives the others, so that a tape keeps one a step."""
    return [first, *(derive_seed(first, direction) for direction in range(1, directions))]


def is_stackable(batch: Any) -> bool:
    """Whether `batch` is a mapping whose tensors share their first dimension."""
    if not hasattr(batch, "values") or not hasattr(batch, "keys"):
        return False
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    return bool(tensors) and len({tensor.shape[:1] for tensor in tensors}) == 1 and tensors[0].ndim > 0


def stacked(batch: Any, groups: int) -> dict[str, Any]:
    """`batch` repeated `groups` times along the examples: group g is rows `g * B .. (g + 1) * B - 1`."""
    return {
        name: value.repeat(groups, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def check_normalise(name: str, normalise: bool, two_sided: bool, directions: int) -> None:
    """Raise InputError, by the `name` of the flag or argument, if there are not several losses on one side."""
    if normalise and (two_sided or directions < 2):
        raise InputError(f"{name}=True: needs one-sided estimates of 2 or more directions")


def _examples(batch: Any) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


def _check_arguments(eps: float, lr: float, directions: int, pairing: str, weight_decay: float, capture: str) -> None:
    check_positive("zo_eps", eps)
    check_not_negative("learning_rate", lr)
    check_not_negative("weight_decay", weight_decay)
    if not isinstance(directions, int) or directions < 1:
        raise InputError(f"directions={directions}: must be a whole number, 1 or more")
    if pairing not in PAIRINGS:
        raise InputError(f"pairing={pairing}: must be one of {', '.join(PAIRINGS)}")
    if capture not in CAPTURES:
        raise InputError(f"capture={capture}: must be one of {', '.join(CAPTURES)}")
