"""Training, development and evaluation sets, drawn by seed as MeZO draws them, so that results can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xgblora.errors import InputError
from xgblora.tasks.sample import Sample, Splits


@dataclass(frozen=True)
class SampledSets:
    """The samples of one run: `train` and `dev` from the training split, `evaluation` from the validation split."""

    train: list[Sample]
    dev: list[Sample]
    evaluation: list[Sample]


def sample_sets(splits: Splits, *, num_train: int, num_dev: int, num_eval: int | None, seed: int) -> SampledSets:
    """Draw the sets of a run.

    `num_train + num_dev` rows of the training split in the order of numpy's legacy permutation of `seed`, the
    development set being the last `num_dev` of them; `num_eval` rows of the validation split likewise, all of it in
    its own order if None.

    Raises:
        InputError: more samples are asked for than there are, or fewer than one for training or evaluation.
    """
    _check_count("num_train", num_train, at_least=1)
    _check_count("num_dev", num_dev, at_least=0)
    if num_train + num_dev > len(splits.train):
        raise InputError(
            f"num_train={num_train} + num_dev={num_dev}: the training split has only {len(splits.train)} examples; "
            "choose fewer"
        )
    drawn = _subset(splits.train, num_train + num_dev, seed)
    if num_eval is None:
        evaluation = list(splits.valid)
    else:
        _check_count("num_eval", num_eval, at_least=1)
        if num_eval > len(splits.valid):
            raise InputError(f"num_eval={num_eval}: the validation split has only {len(splits.valid)} examples")
        evaluation = _subset(splits.valid, num_eval, seed)
    return SampledSets(train=drawn[:num_train], dev=drawn[num_train:], evaluation=evaluation)


def _subset(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    if not 0 <= seed < 1 << 32:
        raise InputError(f"train_set_seed={seed}: must be from 0 to 4294967295")
    order = np.random.RandomState(seed).permutation(len(samples))[:count]
    return [samples[index] for index in order]


def _check_count(flag: str, value: int, *, at_least: int) -> None:
    if value < at_least:
        raise InputError(f"{flag}={value}: must be {at_least} or more")
