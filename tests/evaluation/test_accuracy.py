"""Accuracy over candidates."""

import numpy as np
import pytest

from xgblora.evaluation.accuracy import candidate_accuracy


def test_the_best_scored_candidate_is_the_answer():
    scores = np.array([[-1.0, -2.0], [-2.0, -1.0], [-3.0, -1.0], [-1.0, -9.0]])
    assert candidate_accuracy(scores, np.array([0, 1, 0, 0])) == 0.75


def test_padding_candidates_are_never_the_answer():
    scores = np.array([[-50.0, -60.0, -np.inf], [-200.0, -np.inf, -np.inf]])
    assert candidate_accuracy(scores, np.array([0, 0])) == 1.0


def test_the_first_of_equal_scores_counts():
    assert candidate_accuracy(np.zeros((4, 2)), np.array([0, 0, 0, 1])) == 0.75


@pytest.mark.parametrize("label, expected", [(0, 1.0), (1, 0.0)])
def test_a_single_example_gives_a_plain_float(label, expected):
    accuracy = candidate_accuracy(np.array([[1.0, 0.0]]), np.array([label]))
    assert isinstance(accuracy, float)
    assert accuracy == expected
