"""The tasks by name."""

from collections.abc import Callable

from xgblora.errors import InputError
from xgblora.tasks import sst2
from xgblora.tasks.sample import Splits

TASKS: dict[str, Callable[[str | None], Splits]] = {"SST2": sst2.load}


def load_task(name: str, data_dir: str | None) -> Splits:
    """The splits of task `name`, from `data_dir` or the hub.

    Raises:
        InputError: the task is unknown (the message lists the known ones), or its data cannot be read.
    """
    if name not in TASKS:
        raise InputError(f"task_name={name}: unknown; known tasks: {', '.join(sorted(TASKS))}")
    return TASKS[name](data_dir)
