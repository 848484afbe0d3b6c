"""Sweeps: their words, and what they come to for each method."""

import pytest

from xgblora.comparison.methods import METHODS, Method
from xgblora.comparison.sweep import named, read_sweep, settings_of
from xgblora.errors import InputError

NUMERIC = {"learning_rate": float, "zo_eps": float, "max_steps": int, "xgblora_steps_per_iteration": int}


def test_values_are_of_the_flag_s_kind():
    assert read_sweep(["learning_rate=1e-4, 3e-4", "max_steps=5"], NUMERIC) == {
        "learning_rate": [1e-4, 3e-4],
        "max_steps": [5],
    }


@pytest.mark.parametrize(
    "word, said",
    [
        ("learning_rat=1", "learning_rat is no flag of xgblora-train that takes a number"),
        ("task_name=SST2", "task_name is no flag"),
        ("seed=1,2", "seed is set by the comparison; use --seeds"),
        ("learning_rate", "a value is missing"),
        ("learning_rate=", "a value is missing"),
        ("learning_rate=1,,2", "a value is missing"),
        ("learning_rate=1,many", "many is no number"),
        ("learning_rate=nan", "nan is no number"),
        ("max_steps=1.5", "1.5 is no whole number"),
        ("learning_rate=1e-4,0.0001", "is given twice"),
        ("", "nothing is no flag"),
    ],
)
def test_words_that_are_wrong(word, said):
    with pytest.raises(InputError) as error:
        read_sweep([word], NUMERIC)
    assert str(error.value).startswith(f"sweep={word}: ")
    assert said in str(error.value)


def test_the_rank_as_the_command_line_calls_it():
    assert read_sweep(["lora_rank=1,8"], {"lora_r": int}) == {"lora_r": [1, 8]}


def test_a_flag_swept_twice():
    with pytest.raises(InputError, match="is swept twice"):
        read_sweep(["zo_eps=1", "zo_eps=2"], NUMERIC)


def test_several_flags_are_a_grid_without_what_makes_no_difference():
    swept = {"learning_rate": [1.0, 2.0], "zo_eps": [3.0, 4.0], "xgblora_steps_per_iteration": [5]}
    assert len(settings_of(METHODS["xgblora_zo"], swept)) == 4
    assert settings_of(METHODS["lora_fo"], swept) == [{"learning_rate": 1.0}, {"learning_rate": 2.0}]
    assert settings_of(METHODS["lora_fo"], {}) == [{}]


def test_a_variant_keeps_a_value_of_its_own():
    variant = Method("mine", boosts=True, trainer="zo", flags={"learning_rate": 7.0})
    assert settings_of(variant, {"learning_rate": [1.0, 2.0]}) == [{}]


def test_names():
    assert named({"learning_rate": 3e-4, "max_steps": 5}) == "learning_rate=0.0003, max_steps=5"
