"""Metrics against values worked out by hand."""

import pytest

from xgblora.tasks.metrics import accuracy, exact_match, f1, normalised


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Denver Broncos!", "denver broncos"),
        ("an  apple,\na day", "apple day"),
        ("U.S.A.", "usa"),
        ("the-cat", "thecat"),  # punctuation goes before articles do
        ("theatre", "theatre"),
        ("A the an", ""),
        ("38-yard", "38yard"),
        ("«Größe»", "«größe»"),  # as published: of punctuation only ASCII's
    ],
)
def test_normalised(text, expected):
    assert normalised(text) == expected


@pytest.mark.parametrize(
    "answer, right, em, score",
    [
        ("Denver Broncos", ["the Denver Broncos"], 1, 1),
        ("Denver", ["Denver Broncos"], 0, 2 / 3),
        ("the Broncos of Denver", ["Denver Broncos"], 0, 2 * (2 / 3) / (2 / 3 + 1)),
        ("Carolina", ["Denver Broncos"], 0, 0),
        ("Carolina", ["Denver", "carolina."], 1, 1),
        ("to be or to be", ["to be"], 0, 2 * 0.4 / 1.4),  # a word counts as often as both have it
        ("", ["Denver"], 0, 0),
        ("the", ["a"], 1, 0),  # no words on both sides: equal, and nothing shared
        ("7", ["7", "seven"], 1, 1),
        ("7 points", ["7"], 0, 2 / 3),
        ("no answer", ["no answer"], 1, 1),
        ("no idea", ["no answer"], 0, 0),  # not the half that the shared word would give
        ("CANNOTANSWER", ["CANNOTANSWER", "Denver"], 1, 1),
        ("Denver", ["CANNOTANSWER", "Denver"], 1, 0),
    ],
)
def test_exact_match_and_f1(answer, right, em, score):
    assert exact_match(answer, right) == em
    assert f1(answer, right) == pytest.approx(score)


def test_accuracy_counts_every_right_candidate():
    assert [accuracy(chosen, (2, 1)) for chosen in range(4)] == [0, 1, 1, 0]
