"""Where a run writes, and which checkpoint it goes on from."""

import copy
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from xgblora.errors import InputError
from xgblora.records import checkpoint
from xgblora.records.one_writer import only_one
from xgblora.records.run_folder import RunFolder, refuse_unwritable, unused_folder
from xgblora.runs.console import logger
from xgblora.training import processes
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.task_flags import TaskArguments

# how a person asks for the newest whole checkpoint
_LAST = ("last", "True", "true")


@dataclass(frozen=True)
class Place:
    """Where a run stands.

    Attributes:
        folder: where it will write.
        resumed: the checkpoint to go on from.
        first_step: of that checkpoint if it is one of `folder`; 0 for a run that is new there.
    """

    folder: RunFolder
    resumed: str | None
    first_step: int


def place_of(task: TaskArguments, args: XGBLoRAArguments, about: str, held: ExitStack | None = None) -> Place:
    """Choose the folder and the checkpoint.

    Nothing is written, but what a killed process left half done in a folder that is resumed is cleaned up, unless
    `task.dry_run` is set.

    Args:
        task, args: the flags.
        about: what is trained upon, a word for the name of the folder.
        held: until it is closed no other run works in the folder; without it, or in a dry run, any can.

    Raises:
        InputError: the folder cannot be written, holds another run, or one is at work there.
    """
    name = f"{Path(task.model_name).name}-{about}-{args.method}-{args.trainer}-seed{args.seed}"
    folder = _folder_of(args, name)
    if held is not None and not task.dry_run and processes.writes(args):
        held.enter_context(only_one(folder.path, flag="output_dir", who="another run"))
    resumed = args.resume_from_checkpoint
    if resumed in _LAST:
        resumed = _go_on_from_last(folder, task, args)
    elif args.names_its_folder and not task.overwrite:
        _refuse_another_run(folder, resumed)
    return Place(folder, resumed, _step_in(folder, resumed))


def in_place(args: XGBLoRAArguments, task: TaskArguments, place: Place) -> XGBLoRAArguments:
    """A copy of `args` that says where the run stands."""
    args = copy.copy(args)
    # transformers' trainer makes its folder as it is made itself
    args.output_dir = tempfile.gettempdir() if task.dry_run else str(place.folder.path)
    args.resume_from_checkpoint = place.resumed
    return args


def _folder_of(args: XGBLoRAArguments, name: str) -> RunFolder:
    if args.names_its_folder:
        folder = RunFolder(Path(args.output_dir))
    elif args.resume_from_checkpoint in _LAST:
        raise InputError("resume_from_checkpoint=last: give --output_dir, the folder of the run that is to go on")
    else:
        folder = RunFolder(unused_folder(Path("runs"), name))
    refuse_unwritable(folder.path)
    return folder


def _go_on_from_last(folder: RunFolder, task: TaskArguments, args: XGBLoRAArguments) -> str | None:
    """The newest whole checkpoint of `folder`; None for a new run."""
    if not task.dry_run and processes.writes(args):
        folder.remove_leftovers()
    whole, damaged = checkpoint.newest_whole(folder.path)
    for line in damaged:
        logger.warning("passed over %s", line)
    if whole is None and not task.overwrite:
        folder.refuse_if_finished()
    logger.info("resuming from %s", whole) if whole else logger.info("no whole checkpoint: starting from the beginning")
    return str(whole) if whole else None


def _refuse_another_run(folder: RunFolder, resumed: str | None) -> None:
    step = _step_in(folder, resumed)
    if step:
        checkpoint.refuse_newer(folder.path, step)
    else:
        folder.refuse_if_used()


def _step_in(folder: RunFolder, resumed: str | None) -> int:
    """The step of the checkpoint `resumed` if it is one of `folder`; 0 for a run that is new there."""
    if not resumed:
        return 0
    chosen = Path(resumed)
    return checkpoint.step_of(chosen) if chosen.resolve().parent == folder.path.resolve() else 0
