"""`ZeroOrder`: training by forward passes alone.

A batch is run at places round `master` that an estimator names (`xgblora.zo.estimator`), which makes of the losses a
projected gradient g for each of q random directions z. `mean(g z)` is the gradient that an optimizer steps against.

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
from torch.nn.functional import pad

from xgblora.adapters import Trainable
from xgblora.errors import InputError, check_not_negative, check_positive
from xgblora.ops.noise import derive_seed
from xgblora.ops.perturb import check_distribution
from xgblora.tape import Tape
from xgblora.zo.cuda_recorder import CudaRecorder
from xgblora.zo.estimator import Estimator, check_estimator, direction_seeds, grouped
from xgblora.zo.estimator_choice import chosen_estimator
from xgblora.zo.exchange import Alone, Exchange
from xgblora.zo.losses import losses_given
from xgblora.zo.out_of_memory import is_out_of_memory
from xgblora.zo.stacking import FAR_APART, elements_of, examples_in, is_stackable, same_losses, stacked
from xgblora.zo.step_graphs import StepGraphs
from xgblora.zo.two_sided import TwoSided
from xgblora.zo.update_rule import ArenaOptimizer, UpdateRule

logger = logging.getLogger("xgblora")

Objective = Callable[[Any, Any], Tensor]
PAIRINGS = ("auto", "paired", "sequential")
CAPTURES = ("auto", "never")
# A stacked forward needs the activations of all its copies of a batch at once. Past this many input elements a batch
# fills the device by itself and stacking saves nothing.
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
    """Zeroth-order steps over the adapters of a model.

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
        estimator: what a step's estimate is; in place of `directions`, `two_sided` and `normalise`, which are left out.
        exchange: what of a step this process measures, and how it gets what the others did (`xgblora.zo.exchange`).

    Attributes:
        estimator: the one at work.
        forwards: how often this process runs a batch in a step: alone 2q or q + 1, without an estimator of one's own.
        example_losses: fp32 [B], of the batch that was estimated last, the mean over the forwards of this process; fp32
            scalar where the objective gives no loss an example.
        graphs: the step's CUDA graphs; None on a CPU and with `capture="never"`.
        optimizer: the rule at work, with its moments.
        pairing, stacking_was_tried: how forwards are run, and whether a trial has decided it; kept in checkpoints.
        tape: where steps are recorded, None unless `xgblora.start_tape` began one.
        skipped_steps: int64 scalar on the device: steps whose losses were not finite.

    Raises:
        InputError: an argument is out of range.
    """

    WAYS = ("pairing", "stacking_was_tried")  # how forwards are run: what a checkpoint keeps of it

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
        estimator: Estimator | None = None,
        exchange: Exchange | None = None,
    ):
        _check_arguments(eps, lr, pairing, weight_decay, capture)
        check_distribution(distribution)
        estimator = chosen_estimator(estimator, directions, two_sided, normalise)
        check_estimator(estimator)
        rule = optimizer if isinstance(optimizer, UpdateRule) else UpdateRule(optimizer)
        if not adapters.arena.stacks:
            if pairing == "paired":
                raise InputError("pairing=paired: full parameters hold one sign at a time; use sequential or auto")
            pairing = "sequential"
        self.adapters, self.objective = adapters, objective
        self.estimator, self.pairing, self.seed = estimator, pairing, seed
        self.exchange = exchange or Alone()
        own = list(self.exchange.rows(estimator))
        self.directions, self.forwards = estimator.directions, len(own) * estimator.forwards // len(estimator.signs)
        self.two_sided, self.normalise = isinstance(estimator, TwoSided), getattr(estimator, "normalise", False)
        self.optimizer = ArenaOptimizer(adapters.arena, rule, distribution=distribution, weight_decay=weight_decay)
        self.step_index = 0
        self.tape: Tape | None = None
        device = adapters.arena.master.device
        fp32 = {"dtype": torch.float32, "device": device}
        self._eps = torch.tensor([eps], **fp32)
        self._lr = torch.tensor([lr], **fp32)
        self._signs = torch.tensor([estimator.signs[row] for row in own], **fp32)
        copies = len(estimator.signs) // len(estimator.noise)
        self._noise = grouped([estimator.noise[row // copies] for row in own])
        # those of all directions, for the update, and behind them those of the rows that are measured here
        self._seeds = torch.zeros(self.directions + len(self._noise), dtype=torch.int64, device=device)
        self._losses = torch.zeros(len(estimator.signs), **fp32)
        self.example_losses = self._losses.mean()
        self._first_seed = 0
        self._weight = self._share = 0.0
        self._announced: set[str] = set()
        self.stacking_was_tried = False
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=device)
        self._base = [*adapters.model.parameters(), *adapters.model.buffers()]
        captures = capture == "auto" and device.type == "cuda"
        self.graphs = StepGraphs(CudaRecorder(device), device, self._tensors) if captures else None
        adapters.model.eval()
        adapters.arena.allocate_live(len(own), adapters.compute_dtype)
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
            fp32 scalar on the device: the mean loss of this batch over all forwards, those of other processes too.

        Raises:
            InputError: the batch cannot be run as the pairing or the estimator has it.
        """
        groups, rows = self.estimator.groups(examples_in(batch)), len(self._signs) // self.forwards
        self._check_groups(groups, rows)
        if self._weight == 0.0:
            self._start_step()
        if self.adapters.model.training:
            self.adapters.model.eval()
        try:
            found = self._losses_or_none(batch)
            if found is None:
                # here, where nothing holds what the stacked forward had allocated
                found = self._run(("losses", self.pairing, self._active_layers()), self._losses_of, batch)
        except BaseException:
            self.abandon_step()
            raise
        finally:
            self.adapters.arena.read_one_row()
        losses, self.example_losses = found
        losses = self.exchange.share(losses)
        self._losses.add_(losses, alpha=weight)
        self._weight += weight
        self._share += weight * groups / rows
        return losses.mean() if groups == rows else losses.mean() * (rows / groups)

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
        if self._share != self._weight:
            # rows that no example was run at have no loss
            loss = loss * (self._weight / self._share)
        if self.tape is not None:
            self.tape.record_step(self.step_index, self._first_seed, self._lr, finite, projected)
        self.step_index += 1
        self._weight = self._share = 0.0
        return StepResult(loss=loss, projected_grad=projected)

    def abandon_step(self) -> None:
        """Forget the batches estimated since the last update; the model is the unperturbed one again."""
        self._weight = self._share = 0.0
        self.adapters.arena.restore()

    def _losses_or_none(self, batch: Any) -> tuple[Tensor, ...] | None:
        """`_losses_of` the batch; None, and one after the other from now on, if a stacked forward does not fit."""
        try:
            return self._run(("losses", self.pairing, self._active_layers()), self._losses_of, batch)
        except (RuntimeError, MemoryError) as error:
            if self.pairing == "sequential" or not is_out_of_memory(error):
                raise
        self.pairing = "sequential"
        self._announce("ZO: signs and directions run one after the other (out of memory when stacked)")
        if self._losses.is_cuda:
            torch.cuda.empty_cache()
        return None

    def _check_groups(self, groups: int, rows: int) -> None:
        if not isinstance(groups, int) or not 1 <= groups <= rows:
            raise InputError(f"estimator={self.estimator.name}: groups={groups} must be from 1 to {rows}")
        if groups > 1 and not self.adapters.arena.stacks:
            raise InputError(
                f"estimator={self.estimator.name}: full parameters hold one row at a time, not {groups} for a forward"
            )

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
        numbers = [*range(self.directions), *self._noise]
        of_directions = direction_seeds(self._first_seed, max(numbers) + 1)
        # from pinned memory, so that the host does not wait for the copy
        seeds = torch.tensor([of_directions[number] for number in numbers], pin_memory=self._seeds.is_cuda)
        self._seeds.copy_(seeds, non_blocking=True)
        self._losses.zero_()
        self._perturb(self._eps)

    def _perturb(self, eps: Tensor) -> None:
        seeds = self._seeds[self.directions :]
        self.adapters.arena.perturb(seeds, eps, self._signs, self.optimizer.distribution)

    def _losses_of(self, batch: Any) -> tuple[Tensor, Tensor]:
        """For each row of `live` the mean loss of the examples that are run at it, fp32; and `example_losses`."""
        groups = self.estimator.groups(examples_in(batch))
        pairs = self._should_pair(batch, groups)
        if pairs and not self.stacking_was_tried:
            self.stacking_was_tried = True
            pairs = self._stacks_right(batch, groups)
        return self._paired_losses(batch, groups) if pairs else self._sequential_losses(batch, groups)

    def _stacks_right(self, batch: Any, groups: int) -> bool:
        """Whether each row of `live` has the same losses in a stacked forward as in one of its own."""
        # so far apart that rows which were confused would show
        self._perturb(torch.full_like(self._eps, FAR_APART))
        try:
            (together, _), (alone, _) = self._paired_losses(batch, groups), self._sequential_losses(batch, groups)
        finally:
            # also where the stacked forward does not fit, and the step goes on one after the other
            self._perturb(self._eps)
        if same_losses(together, alone, self.adapters.compute_dtype):
            return True
        if self.pairing == "paired":
            raise InputError("pairing=paired: stacked signs have other losses than one after the other; use sequential")
        self._announce("ZO: signs and directions run one after the other (stacked, their losses are others)")
        self.pairing = "sequential"
        return False

    def _apply(self, _: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Move `master` by the losses of the step; their mean, the projected gradients [q], and whether it moved."""
        projected = self.estimator.projected_grads(self._losses, self._eps)
        # a difference of finite losses may overflow too
        finite = projected.isfinite().all()
        projected = torch.where(finite, projected, 0.0)
        self.optimizer.step(self._seeds[: self.directions], projected, self._lr, finite)
        self.skipped_steps.add_(~finite)
        self.adapters.arena.restore()
        return self._losses.mean(), projected, finite

    def _should_pair(self, batch: Any, groups: int) -> bool:
        # rows that no example is run at lie between those of two forwards
        if self.pairing == "sequential" or groups * self.forwards < len(self._signs):
            return False
        if not is_stackable(batch):
            if self.pairing == "paired":
                raise InputError("pairing=paired: the batch must be a mapping of tensors with equal first dimensions")
            self._announce("ZO: signs and directions run one after the other (the batch cannot be stacked)")
            return False
        if self.pairing == "auto":
            return elements_of(batch) * self.forwards <= AUTO_PAIRING_ELEMENTS
        return True

    def _paired_losses(self, batch: Any, groups: int) -> tuple[Tensor, Tensor]:
        rows = len(self._signs)
        losses = self._losses_with(0, rows, stacked(batch, self.forwards, rows, self.adapters.first_block()))
        if losses.shape[:1] != (self.forwards * examples_in(batch),):
            if self.pairing == "paired":
                raise InputError(
                    f"pairing=paired: the objective must return one loss an example, not shape {tuple(losses.shape)}"
                )
            self._announce("ZO: signs and directions run one after the other (the objective gives no loss an example)")
            self.pairing = "sequential"
            return self._sequential_losses(batch, groups)
        losses = losses.float()
        return losses.view(rows, -1).mean(dim=1), losses.view(self.forwards, -1).mean(dim=0)

    def _sequential_losses(self, batch: Any, groups: int) -> tuple[Tensor, Tensor]:
        rows, means, of_examples = len(self._signs) // self.forwards, [], []
        batch = stacked(batch, 1, groups) if groups > 1 else batch
        for first in range(0, len(self._signs), rows):
            losses = self._losses_with(first, first + groups, batch).float()
            means.append(pad(self._means_of(losses, groups, batch), (0, rows - groups)))
            of_examples.append(losses)
        return torch.cat(means), torch.stack(of_examples).mean(dim=0)

    def _means_of(self, losses: Tensor, groups: int, batch: Any) -> Tensor:
        """fp32 [groups]: the mean over each one's share of the examples."""
        if groups == 1:
            return losses.mean().view(1)
        if losses.shape[:1] != (examples_in(batch),):
            raise InputError(
                f"estimator={self.estimator.name}: the objective must return one loss an example, not shape "
                f"{tuple(losses.shape)}"
            )
        return losses.view(groups, -1).mean(dim=1)

    def _losses_with(self, start: int, stop: int, batch: Any) -> Tensor:
        """What the objective gives for `batch` while the model reads these rows of `live`."""
        self.adapters.arena.read_live(start, stop)
        with self.adapters.arena.while_unchanged():
            return losses_given(self.objective(self.adapters.model, batch), self._losses.device)

    def _announce(self, message: str) -> None:
        if message not in self._announced:
            self._announced.add(message)
            logger.info(message)


def _check_arguments(eps: float, lr: float, pairing: str, weight_decay: float, capture: str) -> None:
    check_positive("zo_eps", eps)
    check_not_negative("learning_rate", lr)
    check_not_negative("weight_decay", weight_decay)
    if pairing not in PAIRINGS:
        raise InputError(f"pairing={pairing}: must be one of {', '.join(PAIRINGS)}")
    if capture not in CAPTURES:
        raise InputError(f"capture={capture}: must be one of {', '.join(CAPTURES)}")
