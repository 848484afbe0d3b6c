"""`dry_run`: what a run would do and need, from the same flags, data and model, with nothing written."""

from xgblora.runs import report
from xgblora.runs.console import log_block
from xgblora.runs.forecast import (
    Batches,
    Course,
    DiskSpace,
    RunMemory,
    course_of,
    disk_space,
    expected_boosters,
    memory_of_run,
    training_batches,
)
from xgblora.runs.plan import plan
from xgblora.runs.prepare import prepare
from xgblora.spelling import memory_size
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.task_flags import TaskArguments
from xgblora.training.trainer import XGBLoRATrainer

Rows = list[tuple[str, object]]


def dry_run(task: TaskArguments, args: XGBLoRAArguments) -> None:
    """Log the configuration of the run, and what is to come.

    Args:
        task: with `dry_run` set.
        args: the other flags.

    Raises:
        InputError: a flag, a file or the data is wrong, as of `fine_tune`; or a batch does not fit into the memory.
    """
    planned = plan(task, args)
    run = prepare(planned)
    task, args, trainer = planned.task, planned.args, run.trainer
    report.log_configuration(task, args, trainer, run.measurement.sets, planned.folder)
    course = course_of(trainer)
    batches = training_batches(trainer, course.last)
    memory = memory_of_run(trainer, batches, expected_boosters(trainer, course))
    disk = disk_space(trainer, course, memory)
    rows = [*_steps(trainer, course), *_work(trainer, batches), *_memory(trainer, memory), *_disk(task, args, disk)]
    log_block("dry run: nothing was written", rows)


def _steps(trainer: XGBLoRATrainer, course: Course) -> Rows:
    epochs = f"{course.last / course.per_epoch:.4g} epochs of {course.per_epoch:,} steps"
    steps = f"{course.last:,} ({epochs})"
    if course.first:
        steps = f"{course.last - course.first:,}, from step {course.first:,} to {course.last:,} ({epochs} in all)"
    merges = f"{'at most ' if course.at_most else ''}{course.merges:,}"
    if course.first_merges:
        more = ", ..." if course.merges > len(course.first_merges) else ""
        merges += f" ({', '.join(course.first_merges)}{more})"
    if course.leftover:
        merges += "; the last adapter is merged when training has ended"
    return [
        ("Optimizer steps", steps),
        ("Merges to come", merges),
        ("Trainable parameters", f"{trainer.adapters.num_parameters():,}"),
    ]


def _work(trainer: XGBLoRATrainer, batches: Batches) -> Rows:
    count = trainer.args.gradient_accumulation_steps
    forwards = f"{trainer.zo.forwards * count}" if trainer.zo is not None else f"{count}, and as many backwards"
    tokens = f"{batches.tokens * count:,.0f} on average, padding included; {batches.most_tokens:,} in the largest batch"
    return [("Forwards a step", forwards), ("Tokens a step", tokens)]


def _memory(trainer: XGBLoRATrainer, memory: RunMemory) -> Rows:
    device, backward = trainer.args.device, trainer.zo is None
    rows = [
        ("Memory of the base weights", memory.weights),
        ("Memory of the fp32 master" if trainer.args.full else "Memory of the adapters", memory.adapters),
        ("Memory of the optimizer", memory.optimizer),
        (f"Memory of a step (activations{' and gradients' if backward else ''}, largest batch)", memory.step),
        ("Memory of merges on the device (remainders)", memory.remainders),
        ("Memory of merges on the host (base weights, boosters)", memory.host),
    ]
    if memory.trunk:
        rows.append(("Memory of remembered hidden states on the host", memory.trunk))
    if memory.evaluation:
        rows.append(("Memory of an evaluation (activations, largest batch of the development set)", memory.evaluation))
    shown = [(name, memory_size(size)) for name, size in rows]
    host = memory.host + memory.trunk
    if device.type == "cpu":
        together = f"{memory_size(memory.device + host)} on the cpu"
    else:
        together = f"{memory_size(memory.device)} on {device}, {memory_size(host)} on the host"
    return [
        *shown,
        ("Memory at the peak", f"{together}, beside Python, the libraries and the scratch space of kernels"),
    ]


def _disk(task: TaskArguments, args: XGBLoRAArguments, disk: DiskSpace) -> Rows:
    left = {"boosters": disk.boosters, "tape": disk.tape, "model": disk.model if task.save_model else 0}
    shown = ", ".join(f"{name} {memory_size(size)}" for name, size in left.items() if size)
    strategy = getattr(args.save_strategy, "value", args.save_strategy)
    if strategy == "no":
        checkpoints = "none (--save_strategy no)"
    else:
        often = f"every {args.save_steps:g} steps" if strategy == "steps" else f"by {strategy}"
        kept = f", the last {args.save_total_limit} are kept" if args.save_total_limit else ""
        checkpoints = f"{often}, {memory_size(disk.checkpoint)} at most for each{kept}"
    return [("Left on the disk", shown), ("Checkpoints", checkpoints)]
