"""The tasks by name."""

from pathlib import Path

from xgblora.errors import InputError
from xgblora.tasks import boolq, cb, copa, drop, multirc, record, rte, squad, sst2, wic, wsc
from xgblora.tasks.row import did_you_mean
from xgblora.tasks.sample import Splits
from xgblora.tasks.task import Task
from xgblora.tasks.task_file import read_task_file

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK for module in (sst2, rte, cb, boolq, wsc, wic, multirc, copa, record, squad, drop)
}


def choose_task(name: str | None, file: str | None = None) -> Task:
    """The task called `name` (None: SST2), or the one of a task file.

    Raises:
        InputError: the task is unknown (the message lists the known ones), the file is wrong, or both are given and
            mean different tasks.
    """
    if file is not None:
        task = read_task_file(Path(file))
        if name not in (None, task.name):
            raise InputError(f"task_name={name} and task_file={file}: choose one of them")
        return task
    name = name or "SST2"
    if name not in TASKS:
        raise InputError(f"task_name={name}: unknown{did_you_mean(name, TASKS)}; known tasks: {', '.join(TASKS)}")
    return TASKS[name]


def load_task(name: str, data_dir: str | None) -> Splits:
    """The splits of task `name`, from `data_dir` or the hub.

    Raises:
        InputError: the task is unknown (the message lists the known ones), or its data cannot be read.
    """
    return choose_task(name).load(data_dir)
