"""Which ids a model reads, and what fills a batch up."""

import copy

import pytest
from torch import nn

from xgblora.errors import InputError
from xgblora.scoring.vocabulary import padding_id, refuse_unknown_ids, rows_of_embeddings


def test_the_rows_of_a_model(model, tiny_tokenizer):
    assert rows_of_embeddings(model) == len(tiny_tokenizer)


def test_a_module_without_embeddings_says_nothing():
    assert rows_of_embeddings(nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    "without, found", [((), "<pad>"), (("pad_token",), "</s>"), (("pad_token", "eos_token"), None)]
)
def test_what_fills_a_batch_up(tiny_tokenizer, without, found):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    for name in without:
        setattr(tokenizer, name, None)
    assert padding_id(tokenizer) == (tokenizer.convert_tokens_to_ids(found) if found else 0)


def test_padding_that_the_model_does_not_read_is_not_taken(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<more>"})
    assert padding_id(tokenizer, tokenizer.pad_token_id + 1) == tokenizer.pad_token_id
    assert padding_id(tokenizer, tokenizer.pad_token_id) == tokenizer.eos_token_id


def test_an_id_beyond_the_embeddings_is_refused_with_both_numbers(tiny_tokenizer):
    last = len(tiny_tokenizer) - 1
    refuse_unknown_ids(tiny_tokenizer, last + 1, [0, last])
    refuse_unknown_ids(tiny_tokenizer, None, [10**9])
    with pytest.raises(InputError, match=f"gives the token {last} .*embeddings have {last} rows"):
        refuse_unknown_ids(tiny_tokenizer, last, [0, last])
