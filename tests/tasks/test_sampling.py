"""The sets of a run are MeZO's, so that results can be compared."""

import numpy as np
import pytest

from xgblora.errors import InputError
from xgblora.tasks import Sample, Splits, sample_sets


@pytest.fixture
def splits() -> Splits:
    """100 and 20 samples, labelled by their place."""
    train, valid = ([Sample("", ("", ""), place, "") for place in range(count)] for count in (100, 20))
    return Splits(train, valid)


def places(samples: list[Sample]) -> list[int]:
    return [sample.label for sample in samples]


@pytest.mark.parametrize("seed", [0, 42, 4294967295])
def test_sets_are_the_first_of_numpy_s_permutation_with_dev_at_the_end(splits, seed):
    sets = sample_sets(splits, num_train=30, num_dev=10, num_eval=5, seed=seed)
    # as MeZO's Dataset.sample_subset and run.py do
    np.random.seed(seed)
    drawn = np.random.permutation(100).tolist()[:40]
    np.random.seed(seed)
    evaluated = np.random.permutation(20).tolist()[:5]
    assert places(sets.train) == drawn[:-10]
    assert places(sets.dev) == drawn[-10:]
    assert places(sets.evaluation) == evaluated


def test_train_and_dev_do_not_overlap(splits):
    sets = sample_sets(splits, num_train=60, num_dev=40, num_eval=None, seed=0)
    assert sorted(places(sets.train) + places(sets.dev)) == list(range(100))


def test_all_of_the_validation_split_keeps_its_order(splits):
    assert places(sample_sets(splits, num_train=1, num_dev=0, num_eval=None, seed=0).evaluation) == list(range(20))


def test_no_development_set_is_allowed(splits):
    sets = sample_sets(splits, num_train=5, num_dev=0, num_eval=None, seed=0)
    assert len(sets.train) == 5
    assert sets.dev == []


def test_the_global_generator_of_numpy_is_left_alone(splits):
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    sample_sets(splits, num_train=5, num_dev=0, num_eval=3, seed=0)
    assert np.random.random() == expected


@pytest.mark.parametrize(
    "counts, said",
    [
        ({"num_train": 91}, "num_train=91 + num_dev=10: the training split has only 100 examples"),
        ({"num_eval": 21}, "num_eval=21: the validation split has only 20 examples"),
        ({"num_train": 0}, "num_train=0: must be 1 or more"),
        ({"num_dev": -1}, "num_dev=-1: must be 0 or more"),
        ({"num_eval": 0}, "num_eval=0: must be 1 or more"),
        ({"seed": -1}, "train_set_seed=-1"),
        ({"seed": 1 << 32}, "train_set_seed=4294967296"),
    ],
)
def test_more_than_there_are_or_fewer_than_needed_is_refused(splits, counts, said):
    with pytest.raises(InputError) as error:
        sample_sets(splits, **{"num_train": 10, "num_dev": 10, "num_eval": 5, "seed": 0, **counts})
    assert said in str(error.value)


def test_everything_can_be_asked_for(splits):
    sets = sample_sets(splits, num_train=100, num_dev=0, num_eval=20, seed=1)
    assert sorted(places(sets.train)) == list(range(100))
    assert sorted(places(sets.evaluation)) == list(range(20))
