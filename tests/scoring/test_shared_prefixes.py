"""Prefix groups: nothing is lost, nothing shared that may not be, and few tokens are run."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgblora.scoring import shared_prefixes
from xgblora.scoring.shared_prefixes import PrefixGroup, Text, prefix_groups


def text(*ids: int, target: int | None = None) -> Text:
    return Text(ids, ((len(ids) - 1 if target is None else target, 7, 0),))


def tokens_run(found: list[PrefixGroup]) -> int:
    return sum(group.shared + sum(len(text.ids) - group.shared for text in group.texts) for group in found)


def shared_and_sizes(found: list[PrefixGroup]) -> list[tuple[int, int]]:
    return sorted((group.shared, len(group.texts)) for group in found)


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
        # a prefix of all, and longer ones of some
        (
            [text(1, *LONG, 1), text(1, *LONG, 2), text(1, *reversed(LONG), 1), text(1, *reversed(LONG), 2)],
            [(21, 2)] * 2,
        ),
        # a short end does not cost the others their prefix
        ([text(*LONG, 1), text(*LONG, 2), text(*LONG, 3), text(*LONG[:6])], [(0, 1), (20, 3)]),
    ],
)
def test_texts_are_run_once_as_far_as_it_pays(texts, expected):
    assert shared_and_sizes(prefix_groups(texts)) == expected


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=12), st.data())
def test_prefix_groups_hold_all_texts_and_share_what_is_common(sequences, data):
    texts = [text(*ids, target=data.draw(st.integers(0, len(ids) - 1))) for ids in sequences]
    found = prefix_groups(texts)
    assert sorted(one.ids for group in found for one in group.texts) == sorted(one.ids for one in texts)
    for group in found:
        assert (group.shared > 0) == (len(group.texts) > 1)
        assert len({one.ids[: group.shared] for one in group.texts}) == 1
        assert all(index >= group.shared for one in group.texts for index, *_ in one.targets)
        whole = sum(len(one.ids) for one in group.texts)
        assert whole - tokens_run([group]) >= shared_prefixes.WORTH_SHARING * whole or group.shared == 0


def test_an_end_keeps_its_targets():
    whole = Text((4, 5, 6, 7), ((2, 9, 0), (3, 8, 1)))
    assert whole.after(2) == Text((6, 7), ((0, 9, 0), (1, 8, 1)))
    assert whole.after(0) == whole


def test_many_texts_in_a_chain_do_not_recurse():
    chain = [text(*range(length)) for length in range(1, 2000)]
    assert len(list(itertools.chain.from_iterable(group.texts for group in prefix_groups(chain)))) == 1999
