"""`Thinned` against the whole stream."""

import pytest
import torch

from xgblora.boosting.starts.thinned import Thinned


@pytest.mark.parametrize(
    ("counts", "step"), [([3, 5], 1), ([8], 1), ([9], 2), ([16, 1], 4), ([1] * 17, 4), ([0, 3, 0, 40], 8)], ids=str
)
def test_it_holds_every_so_many_th_row_however_they_come(counts, step):
    stream, held = torch.arange(2.0 * sum(counts)).view(-1, 2), Thinned(8)
    for rows in stream.split(counts):
        held.add(rows)
        assert len(held.rows) <= 8
    assert held.seen == len(stream)
    assert torch.equal(held.rows, stream[::step])


def test_rows_stay_as_they_are():
    held = Thinned(2)
    held.add(torch.ones(5, 3, dtype=torch.bfloat16))
    assert (held.rows.dtype, tuple(held.rows.shape)) == (torch.bfloat16, (2, 3))
