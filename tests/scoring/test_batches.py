"""Batches bounded by tokens."""

import pytest

from xgblora.scoring.batches import batches_by_length


@pytest.mark.parametrize("tokens, extra", [(1, 0), (10, 0), (24, 3), (1000, 50)])
def test_every_text_is_in_one_batch_and_a_batch_of_several_keeps_the_bound(tokens, extra):
    lengths = [3, 9, 4, 4, 1, 12, 7, 2]
    batches = list(batches_by_length(range(8), lengths.__getitem__, tokens=tokens, extra=extra))
    assert sorted(place for batch in batches for place in batch) == list(range(8))
    for batch in batches:
        padded = len(batch) * (max(lengths[place] for place in batch) + extra)
        assert len(batch) == 1 or padded <= tokens


def test_the_longest_come_first():
    assert list(batches_by_length(["a", "bbb", "cc", "dddd"], len, tokens=8)) == [["dddd", "bbb"], ["cc", "a"]]


def test_nothing_makes_no_batch():
    assert list(batches_by_length([], len, tokens=8)) == []
