"""Rewards to weights: the figures of each function by hand, and what all of them owe a member that failed."""

import math

import pytest
import torch

from xgblora.population.shaping import SHAPINGS

NAN = math.nan


def shaped(name, *rows):
    rewards = torch.tensor([list(row) if isinstance(row, tuple) else [row] for row in rows], dtype=torch.float64)
    return SHAPINGS[name](rewards, rewards.isfinite().all(1)).tolist()


def test_z_scores_have_mean_0_and_deviation_1():
    assert shaped("z-score", 1.0, 3.0) == [-1.0, 1.0]
    weights = torch.tensor(shaped("z-score", 1.0, 5.0, 2.0, -7.0))
    assert weights.mean().abs() < 1e-7
    assert abs(weights.std(correction=0) - 1) < 1e-6
    assert shaped("z-score", (0.0, 2.0), (2.0, 4.0)) == [-1.0, 1.0], "of mean rewards"


def test_ranks_are_centred_and_ties_share_theirs():
    assert shaped("ranks", 10.0, -100.0, 11.0) == [0.0, -0.5, 0.5]
    assert shaped("ranks", 1.0, 1.0, 5.0) == [-0.25, -0.25, 0.5]


def test_a_prompt_that_gives_all_members_the_same_says_nothing():
    hard, easy = (0.0, 1.0, 0.0), (1.0, 1.0, 0.0)
    weights = shaped("prompt-baseline", hard, easy)
    assert weights[0] == -weights[1] < 0
    assert shaped("prompt-baseline", (0.0, 900.0), (1.0, 900.0)) == shaped("prompt-baseline", (0.0, 5.0), (1.0, 5.0))


def test_the_better_of_a_pair_wins_by_1_whatever_the_distance():
    assert shaped("best-of-pairs", 1.0, 2.0, 9.0, -50.0, 3.0, 3.0) == [-1.0, 1.0, 1.0, -1.0, 0.0, 0.0]
    assert shaped("best-of-pairs", 1.0, NAN) == [0.0, 0.0]


def test_an_outlier_is_clipped():
    weights = shaped("clip", *[0.0] * 15, 1000.0)
    assert weights[-1] == 2.0 < shaped("z-score", *[0.0] * 15, 1000.0)[-1]


@pytest.mark.parametrize("name", SHAPINGS)
def test_a_failed_member_has_weight_0_and_the_others_what_they_have_without_it(name):
    weights = shaped(name, 1.0, 4.0, NAN, NAN, 2.0, 9.0)
    assert weights[2:4] == [0.0, 0.0]
    assert weights[:2] + weights[4:] == pytest.approx(shaped(name, 1.0, 4.0, 2.0, 9.0))


@pytest.mark.parametrize("name", SHAPINGS)
def test_equal_members_have_equal_weights_that_are_finite(name):
    weights = shaped(name, 2.0, 2.0, 2.0, 2.0)
    assert weights == [0.0] * 4
    assert all(map(math.isfinite, shaped(name, 2.0, NAN)))
