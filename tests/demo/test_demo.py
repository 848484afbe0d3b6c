from pathlib import Path

import pytest

from xgblora import demo
from xgblora.tasks import load_task
from xgblora.training.recipes import RECIPES

FOLDER = Path(demo.__file__).parent


@pytest.fixture(scope="module")
def splits():
    flags = demo.flags()
    return load_task(flags["task_name"], flags["data_dir"])


def test_model_and_reviews_together_are_under_four_megabytes():
    files = [file for file in FOLDER.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert {"model.safetensors", "train.tsv", "dev.tsv"} <= {file.name for file in files}
    assert sum(file.stat().st_size for file in files) < 4_000_000


def test_no_held_out_review_is_trained_on(splits):
    trained = {sample.prompt for sample in splits.train}
    held_out = {sample.prompt for sample in splits.valid}
    assert len(trained) == len(splits.train)
    assert len(held_out) == len(splits.valid)
    assert not trained & held_out


@pytest.mark.parametrize("split", ["train", "valid"])
def test_half_of_the_reviews_are_praise(splits, split):
    labels = [sample.label for sample in getattr(splits, split)]
    assert sum(labels) == len(labels) / 2


def test_flags_of_the_demonstration_fit_its_data(splits):
    flags = demo.flags()
    assert flags["num_train"] + flags["num_dev"] <= len(splits.train)
    rounds_of = RECIPES[flags["recipe"]].flags["xgblora_steps_per_iteration"]
    assert flags["max_steps"] // rounds_of > 1
