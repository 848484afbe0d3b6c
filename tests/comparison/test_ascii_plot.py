"""Curves in a terminal."""

import math

from xgblora.comparison.ascii_plot import ascii_plot


def test_a_falling_and_a_rising_curve_cross():
    lines = ascii_plot({"down": [3.0, 2.0, 1.0], "up": [1.0, 2.0, 3.0]}, width=3, height=3)
    assert lines == [
        "3 |o +",
        "  | =",
        "1 |+ o",
        "  +---",
        "   1 3",
        "   o down   + up   = several",
    ]


def test_many_steps_are_averaged_into_the_columns():
    lines = ascii_plot({"a": [0.0, 2.0] * 50 + [0.0] * 100}, width=2, height=3)
    assert [line.split("|")[1] for line in lines[:3]] == ["", "o", " o"]


def test_a_short_curve_beside_a_long_one_ends_early():
    lines = ascii_plot({"long": [1.0] * 10, "short": [0.0] * 5}, width=10, height=2)
    assert lines[0].endswith("|oooooooooo")
    assert lines[1].endswith("|+++++")


def test_what_is_not_finite_is_left_out():
    assert ascii_plot({"a": [1.0, math.nan, math.inf, 0.0]}, width=4, height=2)[:2] == ["1 |o", "0 |   o"]
    assert ascii_plot({"a": [math.nan]}) == ["(nothing to plot)"]


def test_a_constant_curve():
    lines = ascii_plot({"a": [2.0, 2.0]}, width=2, height=3)
    assert [line.split("|")[1] for line in lines[:3]] == ["", "", "oo"]
