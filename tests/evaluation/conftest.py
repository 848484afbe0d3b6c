"""A model."""

import pytest


@pytest.fixture
def opt(make_opt, tiny_tokenizer):
    """A tiny OPT with the vocabulary of `tiny_tokenizer`."""
    return make_opt(vocab_size=len(tiny_tokenizer))
