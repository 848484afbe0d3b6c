"""Tasks: data, prompts, candidate answers, and their scores under a language model."""

from xgblora.tasks.batch import Collator
from xgblora.tasks.encoding import EncodedExample, encode, encode_all
from xgblora.tasks.eval_mode import in_eval_mode
from xgblora.tasks.registry import TASKS, choose_task, load_task
from xgblora.tasks.sample import Sample, Splits
from xgblora.tasks.sampling import SampledSets, sample_sets
from xgblora.tasks.scoring import OptionScorer
from xgblora.tasks.task import Task
from xgblora.tasks.task_file import read_task_file

__all__ = [
    "TASKS",
    "Collator",
    "EncodedExample",
    "OptionScorer",
    "Sample",
    "SampledSets",
    "Splits",
    "Task",
    "choose_task",
    "encode",
    "encode_all",
    "in_eval_mode",
    "load_task",
    "read_task_file",
    "sample_sets",
]
