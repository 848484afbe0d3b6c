"""`plan`, the first stage of a run: what its flags decide. It needs no data and no model."""

from contextlib import ExitStack
from dataclasses import dataclass, replace

from xgblora.boosting.starts import REINITS, Measured
from xgblora.errors import InputError
from xgblora.objectives.of_task import WITHOUT_GRADIENT, check_objective
from xgblora.records.run_folder import RunFolder
from xgblora.runs.device_map import check_device_map
from xgblora.runs.language_model import refuse_missing_model
from xgblora.runs.measurement import check_measurement
from xgblora.runs.place import Place, in_place, place_of
from xgblora.tasks import Task, choose_task
from xgblora.training import processes
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.check_flags import check_batches
from xgblora.training.check_schedule import goes_by_evaluations
from xgblora.training.flag import Needs, asked_for
from xgblora.training.task_flags import TaskArguments


@dataclass(frozen=True)
class Plan:
    """A run as its flags have it.

    Attributes:
        task, args: the flags, resolved: the name of the task, the folder, the checkpoint to go on from.
        chosen: the task.
        folder: where the run will write.
        first_step: of the checkpoint of `folder` that it goes on from; 0 for a run that is new there.
    """

    task: TaskArguments
    args: XGBLoRAArguments
    chosen: Task
    folder: RunFolder
    first_step: int

    @property
    def sampling_seed(self) -> int:
        """What draws the examples."""
        return sampling_seed(self.task, self.args.seed)


def plan(task: TaskArguments, args: XGBLoRAArguments, held: ExitStack | None = None) -> Plan:
    """Check the flags, and choose the folder and the checkpoint to go on from; `args` stay as they are.

    Nothing is written, but what a killed process left half done in a folder that is resumed is cleaned up, unless
    `task.dry_run` is set.

    Args:
        task, args: the flags.
        held: what keeps other runs out of the folder, see `place_of`.

    Raises:
        InputError: a flag or a file is wrong, or the folder holds another run, or one is at work there.
    """
    chosen = task_of(task)
    check_run(task, args, chosen)
    task = replace(task, task_name=chosen.name)
    place = place_of(task, args, chosen.name, held)
    return Plan(task, _resolved(args, task, place), chosen, place.folder, place.first_step)


def task_of(task: TaskArguments) -> Task:
    """The task that the flags name.

    Raises:
        InputError: there is no such task, or no such model.
    """
    refuse_missing_model(task.model_name)
    return choose_task(task.task_name, task.task_file)


def check_run(task: TaskArguments, args: XGBLoRAArguments, chosen: Task) -> None:
    """Raise InputError if the flags of a run on the task `chosen` contradict each other or the processes."""
    processes.check_processes(args)
    check_device_map(task, args)
    check_objective(task.objective, chosen, args.trainer, task.num_demos)
    check_start(task.objective, args)
    check_measurement(task, chosen, args.trainer)
    check_batches(args, task.num_train)
    _refuse_unknown_metric(args, chosen)
    _refuse_what_needs_development_examples(task, args)


def check_start(objective: str, args: XGBLoRAArguments) -> None:
    """Raise InputError if rounds start by a gradient, and the objective has none."""
    flag, strategy = "xgblora_reinit" if args.boosts else "lora_init", REINITS[args.start]
    needs_gradient = isinstance(strategy, Measured) and strategy.needs_gradient
    if needs_gradient and args.trainer != "none" and objective in WITHOUT_GRADIENT:
        raise InputError(f"{flag}={args.start}: needs a gradient, objective={objective} has none; use --{flag} data")


def sampling_seed(task: TaskArguments, seed: int) -> int:
    """The seed that draws the examples of a run with `seed`."""
    return seed if task.train_set_seed is None else task.train_set_seed


def _resolved(args: XGBLoRAArguments, task: TaskArguments, place: Place) -> XGBLoRAArguments:
    """A copy of `args` with all that a plan changes."""
    args = in_place(args, task, place)
    if not task.num_dev:
        args.eval_strategy = "no"
    return args


def _refuse_unknown_metric(args: XGBLoRAArguments, chosen: Task) -> None:
    """Now, and not at the first evaluation."""
    known = ["loss"] if chosen.generation else ["loss", "accuracy"]
    if (args.metric_for_best_model or "loss").removeprefix("eval_") not in known:
        raise InputError(f"metric_for_best_model={args.metric_for_best_model}: must be {' or '.join(known)}")


def _refuse_what_needs_development_examples(task: TaskArguments, args: XGBLoRAArguments) -> None:
    wanted = asked_for(args, Needs.DEVELOPMENT_EXAMPLES)
    if args.shrinkage.factor is None:
        wanted.append("xgblora_shrinkage=line_search")
    if goes_by_evaluations(args):
        wanted.append(f"lr_scheduler_type={getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}")
    if wanted and not task.num_dev:
        raise InputError(f"num_dev={task.num_dev}: {wanted[0]} needs development examples")
