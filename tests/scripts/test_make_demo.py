"""scripts/make_demo.py: what it makes of its seed is what ships with the package."""

import random
from pathlib import Path

import pytest

from xgblora import demo as shipped

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


@pytest.fixture
def made(monkeypatch):
    """The task of seed 0, its writer, and the documents that come after it."""
    monkeypatch.syspath_prepend(SCRIPTS)
    from demo.grammar import pretraining_documents, take
    from demo.pretraining import Recipe
    from demo.reviews import make_task, write_examples

    rng = random.Random(0)
    task = make_task(rng, Recipe().train_examples, Recipe().dev_examples)
    return task, write_examples, take(pretraining_documents(rng, task.sentences), 2000)


def test_the_reviews_are_those_of_the_package(made, tmp_path):
    task, write_examples, _ = made
    folder = Path(shipped.__file__).parent / "reviews"
    for name, examples in (("train.tsv", task.train), ("dev.tsv", task.dev)):
        write_examples(tmp_path / name, examples)
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_no_review_is_read_in_pretraining_and_none_is_followed_by_the_question(made):
    task, _, documents = made
    assert not any(document.startswith(tuple(task.sentences)) for document in documents)
    asked = [document.split(" It was")[0] for document in documents if " It was" in document]
    assert 300 < len(asked) < 500
    # one neutral sentence, where a review would have a word of praise or blame
    assert all(sentence.count(" . ") == 0 and sentence.endswith(" .") for sentence in asked)
