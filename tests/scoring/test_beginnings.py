"""Families: nothing is lost, nothing shared that may not be, and few tokens are run."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgblora.scoring import beginnings
from xgblora.scoring.beginnings import Family, Text, families


def text(*ids: int, target: int | None = None) -> Text:
    return Text(ids, ((len(ids) - 1 if target is None else target, 7, 0),))


def tokens_run(found: list[Family]) -> int:
    return sum(family.shared + sum(len(text.ids) - family.shared for text in family.texts) for family in found)


def shared_and_sizes(found: list[Family]) -> list[tuple[int, int]]:
    return sorted((family.shared, len(family.texts)) for family in found)


LONG = tuple(range(100, 120))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], []),
        ([text(1, 2, 3)], [(0, 1)]),
        ([text(*LONG, 1), text(*LONG, 2), text(5, 6)], [(0, 1), (20, 2)]),
        # of the same text three times the last token is run three times
        ([text(1, 2, 3), text(1, 2, 3), text(1, 2, 3)], [(2, 3)]),
        # what predicts an option token belongs to the ends
        ([text(*LONG, 1, target=18), text(*LONG, 2)], [(18, 2)]),
        # one token of six saves too little
        ([text(1, 2, 3), text(1, 5, 6)], [(0, 1), (0, 1)]),
        # a beginning of all, and longer ones of some
        (
            [text(1, *LONG, 1), text(1, *LONG, 2), text(1, *reversed(LONG), 1), text(1, *reversed(LONG), 2)],
            [(21, 2)] * 2,
        ),
        # a short end does not cost the others their beginning
        ([text(*LONG, 1), text(*LONG, 2), text(*LONG, 3), text(*LONG[:6])], [(0, 1), (20, 3)]),
    ],
)
def test_texts_are_run_once_as_far_as_it_pays(texts, expected):
    assert shared_and_sizes(families(texts)) == expected


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=12), st.data())
def test_families_hold_all_texts_and_share_what_is_common(sequences, data):
    texts = [text(*ids, target=data.draw(st.integers(0, len(ids) - 1))) for ids in sequences]
    found = families(texts)
    assert sorted(one.ids for family in found for one in family.texts) == sorted(one.ids for one in texts)
    for family in found:
        assert (family.shared > 0) == (len(family.texts) > 1)
        assert len({one.ids[: family.shared] for one in family.texts}) == 1
        assert all(index >= family.shared for one in family.texts for index, *_ in one.targets)
        whole = sum(len(one.ids) for one in family.texts)
        assert whole - tokens_run([family]) >= beginnings.WORTH_SHARING * whole or family.shared == 0


def test_an_end_keeps_its_targets():
    whole = Text((4, 5, 6, 7), ((2, 9, 0), (3, 8, 1)))
    assert whole.after(2) == Text((6, 7), ((0, 9, 0), (1, 8, 1)))
    assert whole.after(0) == whole


def test_many_texts_in_a_chain_do_not_recurse():
    chain = [text(*range(length)) for length in range(1, 2000)]
    assert len(list(itertools.chain.from_iterable(family.texts for family in families(chain)))) == 1999
