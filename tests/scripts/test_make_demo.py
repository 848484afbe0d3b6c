"""scripts/make_demo.py: what it makes of its seed is what ships with the package."""

import random
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize("rows", [61, 64])
def test_rows_for_no_token_are_added_where_their_number_is_no_multiple(made, rows):
    from demo.pretraining import Recipe, build_model, pad_vocabulary

    model = build_model(Recipe(hidden_size=16, layers=1, ffn_size=16), rows).eval()
    ids = torch.arange(4, 20).unsqueeze(0)
    before = model(input_ids=ids).logits
    pad_vocabulary(model)
    after = model(input_ids=ids).logits
    assert model.config.vocab_size == after.shape[-1] == 64
    assert torch.allclose(after[..., :rows], before, atol=1e-6)
    assert torch.allclose(after[..., rows:], before[..., :1].expand(-1, -1, 64 - rows), atol=1e-6)
    assert model.lm_head.weight is model.get_input_embeddings().weight
