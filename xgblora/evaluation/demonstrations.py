"""Demonstrations in front of a question, and the texts that calibrate its scores: all as MeZO's `encode_prompt` does.

Texts that are longer than the model allows lose tokens at their beginning, so that of the demonstrations the first ones
go, the last of them perhaps in part; the question stays as long as it fits.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from xgblora.errors import InputError
from xgblora.tasks import Sample
from xgblora.tasks.sample import trimmed

Calibration = Literal["none", "sfc", "icl_sfc"]


def in_context(sample: Sample, demonstrations: Sequence[Sample], separator: str) -> Sample:
    """The sample with the right answers of `demonstrations` in front of its prompt and candidates."""
    if not demonstrations:
        return sample
    shown = separator.join(other.demonstration for other in demonstrations).strip() + separator
    return replace(
        sample,
        prompt=trimmed(shown + sample.prompt),
        candidates=tuple(trimmed(shown + candidate) for candidate in sample.candidates),
    )


def without_question(sample: Sample) -> Sample:
    """The candidates as they follow no question: their scores are those of their surface form alone.

    Raises:
        InputError: the task has no such texts.
    """
    if sample.sfc_prompt is None:
        raise InputError(f"{sample.origin}: has no sfc_prompt, so that its scores cannot be calibrated")
    return replace(sample, prompt=sample.sfc_prompt, candidates=sample.sfc_candidates)


def draw_demonstrations(train: Sequence[Sample], count: int, *, sets: int, seed: int) -> list[list[Sample]]:
    """A set of `count` demonstrations for each of `sets` examples, drawn with numpy's legacy generators.

    With seed 0 they are MeZO's, which draws a seed below 10,000 an example, and with it the set. (The one set that all
    examples share is the first of the training examples, which MeZO draws likewise.)

    Raises:
        InputError: there are fewer than `count` samples.
    """
    if count > len(train):
        raise InputError(f"num_demos={count}: the training split has only {len(train)} examples")
    seeds = np.random.RandomState(seed).randint(0, 10_000, sets)
    return [[train[place] for place in np.random.RandomState(one).permutation(len(train))[:count]] for one in seeds]
