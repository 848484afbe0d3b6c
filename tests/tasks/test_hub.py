"""Data from the hub, without a hub: a fake `datasets` package stands in for it."""

import sys
from types import SimpleNamespace

import pytest

from xgblora.errors import InputError
from xgblora.tasks import load_task
from xgblora.tasks.hub import load_from_hub


def fake_datasets(monkeypatch, load_dataset):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_both_splits_come_from_glue(monkeypatch):
    asked = []

    def load_dataset(path, name):
        asked.append((path, name))
        rows = [{"sentence": "good ", "label": 1, "idx": 0}]
        return {"train": rows * 3, "validation": rows, "test": [{"sentence": "x", "label": -1}]}

    fake_datasets(monkeypatch, load_dataset)
    splits = load_task("SST2", None)
    assert asked == [("nyu-mll/glue", "sst2")]
    assert (len(splits.train), len(splits.valid)) == (3, 1)
    assert splits.train[2].prompt == "good It was"


def test_an_error_of_the_hub_is_one_line_that_says_the_way_out(monkeypatch):
    def load_dataset(path, name):
        raise ConnectionError("no route\nto host")

    fake_datasets(monkeypatch, load_dataset)
    with pytest.raises(InputError) as error:
        load_from_hub("nyu-mll/glue", "sst2")
    assert str(error.value) == (
        "data set nyu-mll/glue/sst2: cannot be read from the hub (no route); or give --data_dir"
    )


def test_without_the_datasets_package_the_message_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="needs the package datasets"):
        load_from_hub("nyu-mll/glue", "sst2")
