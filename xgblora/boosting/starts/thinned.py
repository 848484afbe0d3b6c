"""`Thinned`: rows that come batch by batch, evenly thinned on the way, so that few are held however many there are."""

import torch
from torch import Tensor


class Thinned:
    """Every s-th row of a stream, s the smallest power of two with which there are `most` of them or fewer.

    Which rows these are depends on how many there were, and on nothing else: of two streams that come side by side
    those are held that belong to each other.

    Args:
        most: rows to hold.

    Attributes:
        rows: [n, K] on the host, in the dtype in which they came; n is at most `most`.
        seen: how many there were.
    """

    def __init__(self, most: int):
        self.most = most
        self.rows = torch.empty(0)
        self.seen = 0
        self._step = 1

    def add(self, rows: Tensor) -> None:
        """`rows` [m, K] are the next ones."""
        first, before = self.seen, self._step
        self.seen += len(rows)
        while -(-self.seen // self._step) > self.most:
            self._step *= 2
        more = rows[-first % self._step :: self._step].cpu()
        self.rows = torch.cat((self.rows[:: self._step // before], more)) if first else more
