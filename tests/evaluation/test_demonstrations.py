"""Texts of in-context learning and calibration, as MeZO makes them."""

import numpy as np
import pytest

from xgblora.errors import InputError
from xgblora.evaluation import draw_demonstrations
from xgblora.evaluation.demonstrations import in_context, without_question
from xgblora.tasks import Sample


@pytest.fixture
def shown() -> list[Sample]:
    first = Sample.of_choices("good It was", ["good It was bad", "good It was great"], 1, "train 1")
    second = Sample.of_choices("no fun\n", ["no fun\nYes", "no fun\nNo"], 1, "train 2")
    return [first, second]


def test_demonstrations_stand_before_prompt_and_candidates(shown, samples):
    sample = in_context(samples[0], shown, "\n\n")
    before = "good It was great\n\nno fun\nNo\n\n"
    assert sample.prompt == before + "a gem It was"
    assert sample.candidates == (before + "a gem It was terrible", before + "a gem It was great")
    assert (sample.label, sample.origin, sample.sfc_prompt) == (1, "sample 0", "It was")


def test_the_separator_is_the_task_s(shown, samples):
    assert in_context(samples[0], shown[:1], " ### ").prompt == "good It was great ### a gem It was"


def test_without_demonstrations_a_sample_is_as_it_was(samples):
    assert in_context(samples[0], [], "\n\n") is samples[0]


def test_an_empty_calibration_prompt_stands_behind_demonstrations(shown):
    asked = Sample.of_choices("so?", ["so? Yes", "so? No"], 0, "x", sfc_prompt="", sfc_candidates=["Yes", "No"])
    bare = in_context(without_question(asked), shown[:1], "\n\n")
    assert bare.prompt == "good It was great\n\n"
    assert bare.candidates == ("good It was great\n\nYes", "good It was great\n\nNo")


def test_a_task_without_calibration_texts_is_refused(shown):
    with pytest.raises(InputError, match="train 1: has no sfc_prompt"):
        without_question(shown[0])


def test_sets_are_those_that_mezo_draws():
    train = [Sample(f"p{i}", (f"p{i} a",), 0, f"train {i}") for i in range(50)]
    drawn = draw_demonstrations(train, 3, sets=4, seed=0)
    # MeZO: a seed an example by `randint` under seed 0, and under each of them the beginning of a permutation
    np.random.seed(0)
    seeds = np.random.randint(0, 10000, 4)
    for one, seed in zip(drawn, seeds, strict=True):
        np.random.seed(seed)
        assert one == [train[i] for i in np.random.permutation(50).tolist()[:3]]


def test_too_few_samples_to_draw_from():
    with pytest.raises(InputError, match="num_demos=3: the training split has only 2"):
        draw_demonstrations([Sample("p", ("p a",), 0, "train")] * 2, 3, sets=1, seed=0)
