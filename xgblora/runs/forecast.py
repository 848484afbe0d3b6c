"""What a run will do and need: its steps and merges, its batches, its memory, and what it will leave on the disk.

Everything is counted but the future: the weights and adapters are there, and one step is tried on the largest batch.
Against the growth of the resident set in training opt-mini on a CPU (fp32, the model loaded before): 101 MiB foreseen
and 127 measured, 211 and 241, and by backpropagation 1312 and 1341; the rest is what the libraries set up once.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from xgblora.adapters.memory import memory_of
from xgblora.boosting.base_copy import BaseCopy
from xgblora.errors import InputError
from xgblora.records import checkpoint
from xgblora.runs.tensor_bytes import TensorBytes
from xgblora.scoring.packing import positions_of
from xgblora.tape import StartRecord
from xgblora.training.trainer import XGBLoRATrainer


@dataclass(frozen=True)
class Course:
    """The steps of a run.

    Attributes:
        first: the step that it goes on from, 0 for a run that is new.
        last: its last step.
        per_epoch: steps of an epoch.
        merges: after one of these steps.
        at_most: whether there may be fewer, because the held-out losses decide.
        first_merges: the places of up to three of them: "step 100" or "epoch 3".
        leftover: 1 if the adapter of the last round is merged when training has ended, 0 if its last step merges.
    """

    first: int
    last: int
    per_epoch: int
    merges: int
    at_most: bool
    first_merges: tuple[str, ...]
    leftover: int


def expected_boosters(trainer: XGBLoRATrainer, course: Course) -> int:
    """How many boosters there will be at the end of `course`, those before its first step included."""
    return _merges_within(trainer, course.last, course.last, course.per_epoch) + course.leftover


def course_of(trainer: XGBLoRATrainer) -> Course:
    """The steps that `trainer` will take."""
    args, policy = trainer.args, trainer.policy
    batches = len(trainer.get_train_dataloader())
    per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    last = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    first = checkpoint.step_of(Path(args.resume_from_checkpoint)) if args.resume_from_checkpoint else 0
    at = (step for step in range(first + 1, last + 1) if policy.due(step, step / per_epoch))
    return Course(
        first,
        last,
        per_epoch,
        merges=_merges_within(trainer, last, last, per_epoch) - _merges_within(trainer, first, last, per_epoch),
        at_most=policy.adaptive is not None or args.early_stopping_rounds > 0,
        first_merges=tuple(policy.place(step, step / per_epoch) for step in islice(at, 3)),
        # the adaptive rule ends the last round with the run
        leftover=int(not args.full and policy.adaptive is None and not policy.due(last, last / per_epoch)),
    )


def _merges_within(trainer: XGBLoRATrainer, steps: int, last: int, per_epoch: int) -> int:
    adaptive, eval_steps = trainer.policy.adaptive, trainer.args.eval_steps
    if adaptive is None:
        return trainer.policy.merges_within(steps, per_epoch)
    # below 1 it is a share of all steps
    return adaptive.most_rounds(steps, int(eval_steps) if eval_steps >= 1 else math.ceil(last * eval_steps))


@dataclass(frozen=True)
class Batches:
    """The training batches of an epoch, or of a run that is shorter.

    Attributes:
        tokens: tokens of a batch on average, padding included.
        most_tokens: of the largest.
        largest: that batch.
    """

    tokens: float
    most_tokens: int
    largest: dict[str, Tensor]


def training_batches(trainer: XGBLoRATrainer, steps: int) -> Batches:
    """The batches that the first `steps` steps are made of, those of an epoch at most."""
    limit = steps * trainer.args.gradient_accumulation_steps
    tokens, largest = [], None
    for batch in islice(trainer.get_train_dataloader(), limit):
        if not tokens or positions_of(batch) > max(tokens):
            largest = batch
        tokens.append(positions_of(batch))
    return Batches(sum(tokens) / len(tokens), max(tokens), largest)


@dataclass(frozen=True)
class RunMemory:
    """Bytes that a run holds at once. The interpreter, the libraries and scratch space of kernels are not among them.

    Attributes:
        weights: the base weights, all of them.
        adapters: what is in training, fp32, and the perturbed copies that a zeroth-order step reads.
        optimizer: what the optimizer keeps.
        step: the peak of what a step on the largest batch makes: activations, and gradients with backpropagation.
        evaluation: likewise, of the largest evaluation batch of the development set.
        remainders: what merging keeps beside 16-bit weights on the device.
        host: on the host, the copy of the base weights that lie in no file, all boosters, and the remainders there.
        trunk: on the host, the hidden states that are remembered.
    """

    weights: int
    adapters: int
    optimizer: int
    step: int
    evaluation: int
    remainders: int
    host: int
    trunk: int = 0

    @property
    def device(self) -> int:
        """At the peak, on the device."""
        kept = self.weights + self.adapters + self.optimizer + self.remainders
        return kept + max(self.step, self.evaluation)


def memory_of_run(trainer: XGBLoRATrainer, batches: Batches, boosters: int) -> RunMemory:
    """Count the memory of a run by trying a step; the trainer is spoilt afterwards.

    Args:
        trainer: before training.
        batches: of the training.
        boosters: that there will be in the end.

    Raises:
        InputError: a batch does not fit into the memory.
    """
    arena, merging = trainer.adapters.arena, memory_of(trainer.adapters)
    # filling it is no part of a step, and may write a file; without it a step holds more
    trunk, trainer.trunk = trainer.trunk, None
    evaluation = _peak_of_evaluation(trainer)
    # of full parameters the live row is the weights themselves
    live = arena.live.nbytes if arena.live is not None and arena.stacks else 0
    step, optimizer = _peak_of_step(trainer, batches.largest)
    # the adapter that is left at the end is merged too, so that every run that trains merges
    planes = merging.remainders if trainer.args.rounding == "remainder" else 0
    on_host = trainer.args.remainders == "host"
    return RunMemory(
        weights=base_bytes(trainer),
        adapters=arena.master.nbytes + live,
        optimizer=optimizer,
        step=step,
        evaluation=evaluation,
        remainders=0 if on_host else planes,
        host=BaseCopy(trainer.adapters).nbytes + boosters * _recorded(trainer) + (planes if on_host else 0),
        trunk=trunk.memory.in_memory if trunk is not None else 0,
    )


def base_bytes(trainer: XGBLoRATrainer) -> int:
    """Bytes of the model without its adapters."""
    model = trainer.adapters.model
    ours = {id(part) for layer in trainer.adapters.layers.values() for part in (layer.a, layer.b)}
    tensors = chain(model.parameters(), model.buffers())
    return sum(tensor.nbytes for tensor in tensors if id(tensor) not in ours)


@dataclass(frozen=True)
class DiskSpace:
    """Bytes of what a run leaves, without the small files.

    Attributes:
        boosters, tape: at the end; no tape with backpropagation.
        model: the trained model.
        checkpoint: the last one, which is the largest.
    """

    boosters: int
    tape: int
    model: int
    checkpoint: int


def disk_space(trainer: XGBLoRATrainer, course: Course, memory: RunMemory) -> DiskSpace:
    """What the run of `course` leaves; everything that was merged before it counts too."""
    count = expected_boosters(trainer, course)
    adapters = trainer.adapters.arena.master.nbytes
    boosters = count * _recorded(trainer)
    packed = _packed_start_bytes(trainer) if trainer.tape is not None else 0
    tape = trainer.tape.size_after(course.last, count, packed) if trainer.tape is not None else 0
    return DiskSpace(boosters, tape, memory.weights, adapters + boosters + tape + memory.optimizer)


def _recorded(trainer: XGBLoRATrainer) -> int:
    """Bytes that a ledger holds of each round: the booster, and its start where that was measured."""
    args = trainer.args
    if args.trainer == "population":
        return 12 * (args.members // 2 if args.pairs else args.members)
    return trainer.adapters.arena.master.nbytes + _start_bytes(trainer)


def _start_bytes(trainer: XGBLoRATrainer) -> int:
    """Of a measured start: 16 bits for each number of `a`; `b` is zero."""
    if not trainer.booster.start.measures:
        return 0
    return 2 * sum(layer.a.numel() for layer in trainer.adapters.layers.values())


@torch.no_grad()
def _packed_start_bytes(trainer: XGBLoRATrainer) -> int:
    """Of a measured start on the tape. One is tried: how far it deflates depends on which layers read one input."""
    start, adapters = trainer.booster.start, trainer.adapters
    if not start.measures:
        return 0
    adapters.reinitialise(round=0)
    return len(StartRecord.of(start.measure(adapters, trainer.booster.samples, 0)).packed)


def _peak_of_step(trainer: XGBLoRATrainer, batch: dict[str, Tensor]) -> tuple[int, int]:
    """The most that a step holds at once, and what the optimizer keeps after it."""
    with _that_fits(trainer, "per_device_train_batch_size"), TensorBytes() as live:
        if trainer.zo is not None:
            trainer.zo.estimate(trainer._prepare_inputs(batch))
            trainer.zo.abandon_step()
        else:
            trainer.model.train()
            with trainer.compute_loss_context_manager():
                trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).backward()
    if trainer.zo is not None:
        return live.peak, sum(moment.nbytes for moment in trainer.adapters.arena.moments.values())
    optimizer = trainer.create_optimizer()
    optimizer.step()
    kept = chain.from_iterable(state.values() for state in optimizer.state.values())
    return live.peak, sum(value.nbytes for value in kept if isinstance(value, Tensor))


def _peak_of_evaluation(trainer: XGBLoRATrainer) -> int:
    if trainer.eval_dataset is None:
        return 0
    largest = max(trainer.get_eval_dataloader(), key=positions_of)
    with _that_fits(trainer, "per_device_eval_batch_size"), TensorBytes() as live:
        trainer.prediction_step(trainer.model, largest, prediction_loss_only=False)
    return live.peak


@contextmanager
def _that_fits(trainer: XGBLoRATrainer, flag: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        size = getattr(trainer.args, flag)
        raise InputError(
            f"{flag}={size}: the largest batch does not fit into the memory of {trainer.args.device}"
        ) from None
