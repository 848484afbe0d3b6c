"""Counting live tensors."""

import torch

from xgblora.runs.tensor_bytes import TensorBytes

MATRIX = 100 * 100 * 4


def test_views_and_writing_in_place_are_nothing_new_and_what_is_freed_is_gone():
    before = torch.ones(100, 100)
    with torch.no_grad(), TensorBytes() as memory:
        x = before @ before
        view = x.view(-1)
        x.add_(1.0)
        before.mul_(2.0)
        assert memory.now == MATRIX
        for _ in range(3):
            x = x @ before
        # the view still holds the first product
        assert (memory.now, memory.peak) == (2 * MATRIX, 3 * MATRIX)
        del view, x
        assert memory.now == 0


def test_what_backpropagation_keeps_is_alive_without_a_name():
    weight = torch.ones(100, 100, requires_grad=True)
    with TensorBytes() as memory:
        loss = (weight @ torch.ones(100, 100)).exp().sum()
        # the factor and the exponential
        assert memory.now == 2 * MATRIX + 4
        loss.backward()
    assert memory.peak >= 3 * MATRIX
    assert memory.now == MATRIX + 4, "the gradient and the loss"
