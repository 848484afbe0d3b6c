"""Prompts, candidates and calibration texts are MeZO's, character by character.

The expected strings are written out from MeZO's `large_models/templates.py` and `tasks.py` as `encode_prompt` in its
`utils.py` passes them on, without spaces at their ends. The rows have the columns of the hub.
"""

import pytest

from tests.tasks.prompts import passages, sentences
from tests.tasks.prompts.generations import GENERATIONS
from xgblora.errors import InputError
from xgblora.tasks import TASKS, Sample


def names_only(value: object) -> str:
    """Tests are called by their task."""
    return value if isinstance(value, str) and value in TASKS else ""


CHOICES = sentences.CHOICES + passages.CHOICES


@pytest.mark.parametrize("name, row, expected", CHOICES, ids=names_only)
def test_a_choice(name, row, expected):
    sample = TASKS[name].to_sample(row, "here")
    assert sample.prompt == expected.prompt
    assert list(sample.candidates) == expected.candidates
    assert sample.right == expected.right
    assert sample.sfc_prompt == expected.sfc_prompt
    assert list(sample.sfc_candidates) == expected.sfc_candidates
    assert sample.demonstration == expected.candidates[expected.right[0]]
    assert not sample.answers
    assert not TASKS[name].generation


@pytest.mark.parametrize("name, row, prompt, trained, answers", GENERATIONS, ids=names_only)
def test_a_generation(name, row, prompt, trained, answers):
    sample = TASKS[name].to_sample(row, "here")
    assert (sample.prompt, sample.candidates, sample.right, sample.answers) == (prompt, (trained,), (0,), answers)
    assert sample.demonstration == trained.removesuffix("\n")
    assert sample.sfc_prompt is None
    assert TASKS[name].generation


def test_each_of_mezo_s_tasks_has_three_examples():
    names = [name for name, *_ in CHOICES + GENERATIONS]
    mezo = ["SST2", "RTE", "CB", "BoolQ", "WSC", "WIC", "MultiRC", "Copa", "ReCoRD", "SQuAD", "DROP"]
    assert set(mezo) <= set(TASKS)
    assert [names.count(name) for name in mezo] == [3] * 11


def test_metrics_and_separator_are_mezo_s():
    assert {name for name, task in TASKS.items() if task.metrics[0] == "f1"} == {"SQuAD", "DROP"}
    assert {task.metrics[0] for name, task in TASKS.items() if name not in ("SQuAD", "DROP")} == {"accuracy"}
    assert {task.separator for task in TASKS.values()} == {"\n\n"}


class TestTheOption:
    """The tokens that are scored are those that MeZO counts: all that the candidate has beyond the prompt."""

    @pytest.mark.parametrize("name, row, expected", CHOICES, ids=names_only)
    def test_it_is_as_long_as_mezo_s(self, shared_tokenizer, name, row, expected):
        from xgblora.scoring import encode

        tokenizer = shared_tokenizer("opt-tokenizer")
        example = encode(TASKS[name].to_sample(row, "here"), tokenizer, max_length=512)
        prompt = len(tokenizer(expected.prompt)["input_ids"])
        lengths = [len(tokenizer(candidate)["input_ids"]) - prompt for candidate in expected.candidates]
        assert [len(option) for option in example.options] == lengths


@pytest.mark.parametrize(
    "name, row, said",
    [
        ("BoolQ", {"passage": "p", "question": "", "answer": True}, "the question is empty"),
        ("BoolQ", {"passage": "p", "question": "q", "answer": 2}, "answer=2: must be true, false, 1 or 0"),
        (
            "CB",
            {"premise": "p", "hypothesis": "h", "label": -1},
            "label=-1: must be entailment, contradiction, neutral",
        ),
        ("RTE", {"premise": "p", "hypotesis": "h", "label": 0}, "no column hypothesis; did you mean hypotesis?"),
        ("RTE", {"premise": None, "hypothesis": "h", "label": 0}, "premise is empty where text is needed"),
        ("Copa", {"premise": "p", "choice1": "a", "choice2": "b", "question": "why", "label": 0}, "question=why"),
        ("Copa", {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 2}, "label=2"),
        ("ReCoRD", {"passage": "p", "query": "q", "entities": ["A"], "answers": ["B"]}, "none of the entities"),
        ("ReCoRD", {"passage": "p", "query": "q", "entities": "A", "answers": []}, "entities is a text where a list"),
        ("SQuAD", {"title": "t", "context": "c", "question": "q", "answers": {"text": []}}, "there is no answer"),
        ("SQuAD", {"title": "t", "context": "c", "question": "q", "answers": "a"}, "a text stands where an object"),
        ("DROP", {"passage": "p", "question": "q", "answers": {}}, "no column answers_spans; did you mean answers?"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(name, row, said):
    with pytest.raises(InputError) as error:
        TASKS[name].to_sample(row, "data.jsonl line 7")
    assert str(error.value).startswith("data.jsonl line 7: ")
    assert said in str(error.value)


def test_samples_can_be_made_by_hand():
    assert Sample("a", ("a b",), 0, "here").right == (0,)
