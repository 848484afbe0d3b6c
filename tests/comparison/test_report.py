"""Means, deviations, choices, differences and equal curves, from runs that were made up."""

import json
import math

import pytest

from xgblora.comparison.figures import loss_curves
from xgblora.comparison.report import Difference, Spread, make, to_json
from xgblora.comparison.runs import Ended
from xgblora.comparison.table import about, percent, plain, summary


def test_deviation_is_with_n_minus_1():
    spread = Spread.of([1.0, None, 2.0, 3.0])
    assert (spread.mean, spread.deviation, spread.n) == (2.0, 1.0, 3)
    assert spread.error == pytest.approx(1 / math.sqrt(3))
    assert Spread.of([5.0]) == Spread(5.0, None, 1)
    assert Spread.of([None]) == Spread(None, None, 0)


def test_a_method_is_reported_over_its_seeds(finished):
    made = make([finished(seed=0, held_out=0.7), finished(seed=1, held_out=0.8)], {}, [0, 1])
    (candidate,) = made.chosen
    assert candidate.spread("eval").mean == pytest.approx(0.75)
    assert candidate.spread("eval").deviation == pytest.approx(0.1 / math.sqrt(2))
    assert made.metric == "accuracy"


def test_the_setting_is_chosen_on_the_development_set_and_not_on_the_held_out_one(finished):
    runs = [
        finished(seed=seed, setting={"learning_rate": rate}, dev=dev, held_out=held_out)
        for rate, dev, held_out in ((0.1, 0.6, 0.9), (0.2, 0.8, 0.7), (0.3, 0.7, 0.8))
        for seed in (0, 1)
    ]
    made = make(runs, {}, [0, 1])
    (chosen,) = made.chosen
    assert chosen.setting == {"learning_rate": 0.2}
    assert len(made.candidates) == 3
    assert [setting["chosen"] for setting in to_json(made)["settings"]] == [False, True, False]


def test_a_setting_that_failed_on_a_seed_is_not_chosen_while_another_finished(finished, planned):
    lucky = [finished(seed=0, setting={"learning_rate": 0.1}, dev=0.9), planned(seed=1, setting={"learning_rate": 0.1})]
    whole = [finished(seed=seed, setting={"learning_rate": 0.2}, dev=0.6) for seed in (0, 1)]
    made = make([*lucky, *whole], {lucky[1].name: Ended(-9, ["killed"])}, [0, 1])
    assert made.chosen[0].setting == {"learning_rate": 0.2}
    assert made.candidates[0].unfinished == 1
    json_ = to_json(made)
    assert json_["unfinished_runs"] == [{"run": lucky[1].name, "exit_status": -9, "last_lines": ["killed"]}]


def test_differences_are_seed_by_seed_and_between_methods_that_train_alike(finished):
    runs = [finished("lora_zo", seed, held_out=0.6 + 0.1 * seed) for seed in (0, 1)]
    runs += [finished("xgblora_zo", seed, held_out=0.62 + 0.1 * seed) for seed in (0, 1)]
    runs += [finished("lora_fo", seed, held_out=0.9) for seed in (0, 1)]
    (difference,) = make(runs, {}, [0, 1]).differences
    assert (difference.method, difference.other) == ("xgblora_zo", "lora_zo")
    assert difference.spread.mean == pytest.approx(0.02)
    assert difference.spread.error == pytest.approx(0.0, abs=1e-12)


def test_equal_curves_are_found_by_seed(finished):
    runs = [finished("lora_zo", seed, losses=(0.5, 0.4)) for seed in (0, 1)]
    runs += [finished("xgblora_zo", seed, losses=(0.5, 0.4)) for seed in (0, 1)]
    (same,) = make(runs, {}, [0, 1]).same_curves
    assert same.by_seed == {0: True, 1: True}
    runs[-1].folder.step_loss.write_text("step,loss\n1,0.5\n2,0.4000000000000001\n")
    (same,) = make(runs, {}, [0, 1]).same_curves
    assert same.by_seed == {0: True, 1: False}
    assert not same.everywhere


def test_forwards_are_counted(finished):
    runs = [finished("lora_zo", zo_directions=4), finished("lora_fo", gradient_accumulation_steps=2)]
    assert [about["forwards"] for about in to_json(make(runs, {}, [0]))["methods"].values()] == [2 * 8, 2 * 6]


ONE_SIDED = {"zo_two_sided": False, "zo_directions": 8}


@pytest.mark.parametrize(
    ("forwards", "flags", "a_step"),
    [
        (9, ONE_SIDED, 9),
        (9, {**ONE_SIDED, "gradient_accumulation_steps": 2}, 18),
        (5, {"zo_directions": 4}, 5),
        (None, ONE_SIDED, 9),
        (None, {"zo_directions": 8}, 16),
    ],
    ids=str,
)
def test_forwards_are_those_of_the_estimator_in_table_figure_and_json(finished, forwards, flags, a_step):
    """As the run says, and of a run of before they were named, as its flags do."""
    made = make([finished("lora_zo", forwards=forwards, losses=(0.7, 0.6, 0.5), **flags)], {}, [0])
    json_ = to_json(made)
    assert json_["methods"]["lora_zo"]["forwards"] == json_["runs"][0]["forwards"] == 3 * a_step
    (row,) = [line for line in summary(made) if line.startswith("lora_zo ")]
    assert f" {3 * a_step} " in row
    (curve,) = loss_curves(made, by_forwards=True)
    assert curve.x.tolist() == [a_step, 2 * a_step, 3 * a_step]


def test_what_is_not_a_number_is_null_in_the_json(finished):
    run = finished(held_out=math.nan)
    text = json.dumps(to_json(make([run], {}, [0])), allow_nan=False)
    assert json.loads(text)["methods"]["lora_zo"]["held_out"]["mean"] is None


@pytest.mark.parametrize(
    "values, said",
    [
        ([0.05], "one seed cannot tell a difference from chance"),
        ([0.05, -0.03, 0.01], "not more than its standard error, no difference is shown"),
        ([0.05, 0.0, 0.01], "more than its standard error, less than twice; a hint, no more"),
        ([0.05, 0.04, 0.06], "more than twice its standard error; 3 seeds are few"),
        ([0.0, 0.0], "the same held-out accuracy on average (2 seeds)"),
        ([], "no seed that both finished"),
    ],
)
def test_a_difference_in_words(values, said):
    text = about(Difference("xgblora_zo", "lora_zo", Spread.of(values)), "accuracy")
    assert said in text
    assert text.startswith("xgblora_zo ")


def test_numbers_in_words():
    assert percent(Spread.of([0.5, 0.6])) == "55.0 ± 7.1%"
    assert percent(Spread.of([0.5])) == "50.0%"
    assert plain(Spread.of([]), 2) == "-"


def test_the_summary_has_the_table_the_settings_and_what_failed(finished, planned):
    runs = [
        finished(name, seed, {"learning_rate": rate}, dev=rate, losses=(0.7, 0.6, 0.5))
        for name in ("lora_zo", "xgblora_zo")
        for rate in (0.5, 0.6)
        for seed in (0, 1)
    ]
    lost = planned("lora_fo")
    lines = summary(make([*runs, lost], {lost.name: Ended(1, ["RuntimeError: out of memory"])}, [0, 1]))
    assert any(line.startswith("zero-shot") and "50.0 ± 0.0%" in line for line in lines)
    assert any(line.startswith("xgblora_zo *") and "learning_rate=0.6" in line for line in lines)
    assert "lora_zo and xgblora_zo: the same losses step by step, bit for bit, on 2 of 2 seeds" in lines
    assert any("lora_fo-seed0 ended with status 1 (RuntimeError: out of memory)" in line for line in lines)
    assert all(len(line) <= 160 for line in lines if "not finished" not in line)


def test_a_summary_of_nothing(planned):
    run = planned()
    lines = summary(make([run], {run.name: Ended(2, [])}, [0]))
    assert lines[0] == "no run has finished"
    assert "status 2 (it printed nothing)" in lines[1]
