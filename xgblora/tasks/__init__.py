"""Tasks: data, prompts, candidate answers, and their scores under a language model."""

from xgblora.tasks.batch import Collator
from xgblora.tasks.encoding import EncodedExample, encode
from xgblora.tasks.registry import TASKS, load_task
from xgblora.tasks.sample import Sample, Splits
from xgblora.tasks.sampling import SampledSets, sample_sets
from xgblora.tasks.scoring import OptionScorer

__all__ = [
    "TASKS",
    "Collator",
    "EncodedExample",
    "OptionScorer",
    "Sample",
    "SampledSets",
    "Splits",
    "encode",
    "load_task",
    "sample_sets",
]
