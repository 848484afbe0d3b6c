"""Operations that write in place say so to autograd, whichever backend runs them."""

import pytest
import torch

from xgblora import ops


def written_by_update():
    master, first, second = torch.zeros(3, 8).unbind()
    ops.update_(master, 1, 1.0, lr=0.1, optimizer="adam", first=first, second=second, factors=torch.ones(7))
    return master, first, second


def written_by_merge():
    weight = torch.ones(2, 3).bfloat16()
    (plane,) = ops.new_remainders([weight])
    ops.merge_rank1_([weight], [(torch.ones(3), torch.ones(2))], 1.0, "remainder", remainders=[plane])
    return weight, plane


def written_by_noise():
    weight = torch.ones(2, 3).bfloat16()
    (plane,) = ops.new_remainders([weight])
    ops.merge_noise_([weight], [(0, 8)], torch.tensor([1]), torch.tensor([0.5]), "remainder", remainders=[plane])
    return weight, plane


def written_by_perturb():
    live = torch.zeros(2, 8)
    ops.perturb(torch.zeros(8), live, 1, 1e-3, torch.tensor([1.0, -1.0]))
    return (live,)


@pytest.mark.parametrize("written", [written_by_update, written_by_merge, written_by_noise, written_by_perturb])
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_every_tensor_that_is_written_counts_it(written, backend, monkeypatch):
    monkeypatch.setenv("XGBLORA_BACKEND", backend)
    assert all(tensor._version > 0 for tensor in written())


def test_a_backward_through_weights_that_were_merged_into_is_an_error():
    x, weight = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3)
    y = ops.rank1_linear(x, weight, None, torch.ones(3), torch.ones(2), 1.0)
    ops.merge_rank1_([weight], [(torch.ones(3), torch.ones(2))], 1.0, "nearest")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_inside_and_outside_inference_mode():
    with torch.inference_mode():
        assert all(len(tensor) for tensor in written_by_merge())
        weight = torch.ones(2, 3)
    ops.merge_rank1_([weight], [(torch.ones(3), torch.ones(2))], 1.0, "nearest")
    assert torch.equal(weight, torch.full((2, 3), 2.0))
