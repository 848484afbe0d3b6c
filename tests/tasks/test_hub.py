"""Data from the hub, without a hub: a fake `datasets` package stands in for it."""

import sys
from types import SimpleNamespace

import pytest

from xgblora.errors import InputError
from xgblora.tasks import TASKS, load_task
from xgblora.tasks.hub import load_from_hub


def fake_datasets(monkeypatch, load_dataset):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


ROWS = {
    "SST2": {"sentence": "good ", "label": 1, "idx": 0},
    "RTE": {"premise": "p", "hypothesis": "h", "label": 1, "idx": 0},
    "CB": {"premise": "p", "hypothesis": "h", "label": 1, "idx": 0},
    "BoolQ": {"question": "q", "passage": "p", "answer": False},
    "WSC": {"text": "A b", "span1_text": "A", "span2_text": "b", "span1_index": 0, "span2_index": 1, "label": 1},
    "WIC": {"word": "w", "sentence1": "a", "sentence2": "b", "label": 1},
    "MultiRC": {"paragraph": "p", "question": "q", "answer": "a", "label": 1, "idx": {"paragraph": 0}},
    "Copa": {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 1},
    "ReCoRD": {"passage": "p", "query": "@placeholder", "entities": ["A", "B"], "answers": ["B"]},
    "SQuAD": {"title": "t", "context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [0]}},
    "DROP": {"passage": "p", "question": "q", "answers_spans": {"spans": ["a"], "types": ["span"]}},
}


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.hub is not None])
def test_every_task_reads_its_splits_from_the_hub(monkeypatch, name):
    asked = []

    def load_dataset(path, configuration):
        asked.append((path, configuration))
        return {"train": [ROWS[name]] * 3, "validation": [ROWS[name]], "test": [{"sentence": "x", "label": -1}]}

    fake_datasets(monkeypatch, load_dataset)
    splits = load_task(name, None)
    assert asked == [TASKS[name].hub]
    assert (len(splits.train), len(splits.valid)) == (3, 1)
    assert splits.train[2].label == (0 if TASKS[name].generation else 1)
    assert splits.valid[0].origin == "validation row 0"


def test_a_data_set_with_a_script_is_read_as_the_parquet_that_the_hub_made_of_it(monkeypatch):
    asked = []

    def load_dataset(path, name=None, data_dir=None, revision=None):
        asked.append((path, name, data_dir, revision))
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found super_glue.py")
        return {"train": [], "validation": []}

    fake_datasets(monkeypatch, load_dataset)
    assert load_from_hub("aps/super_glue", "cb") == {"train": [], "validation": []}
    assert asked == [("aps/super_glue", "cb", None, None), ("aps/super_glue", None, "cb", "refs/convert/parquet")]


def test_an_error_of_the_hub_is_one_line_that_says_the_way_out(monkeypatch):
    def load_dataset(path, name):
        raise OSError("no route\nto host")

    fake_datasets(monkeypatch, load_dataset)
    with pytest.raises(InputError) as error:
        load_from_hub("nyu-mll/glue", "sst2")
    assert str(error.value) == (
        "data set nyu-mll/glue/sst2: cannot be read from the hub (no route to host); or give --data_dir"
    )


def test_without_the_datasets_package_the_message_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="needs the package datasets"):
        load_from_hub("nyu-mll/glue", "sst2")
