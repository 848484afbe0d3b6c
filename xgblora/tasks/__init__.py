"""Tasks: data, prompts, candidate answers, and the metrics of answers."""

from xgblora.tasks.registry import TASKS, choose_task, load_task
from xgblora.tasks.sample import Sample, Splits
from xgblora.tasks.sampling import SampledSets, sample_sets
from xgblora.tasks.task import Task
from xgblora.tasks.task_file import read_task_file

__all__ = [
    "TASKS",
    "Sample",
    "SampledSets",
    "Splits",
    "Task",
    "choose_task",
    "load_task",
    "read_task_file",
    "sample_sets",
]
