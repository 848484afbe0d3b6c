"""How `merge_rank1_` of CUDA tensors calls the extension, with the CPU in place of the GPU."""

import pytest
import torch

from xgblora.ops.eager import eager
from xgblora.ops.merge_rank1 import ROUNDINGS, new_remainders


def views(dtype):
    """Weights of strides that the kernel does not know: every other column, and the transpose of half the columns."""
    generator = torch.Generator().manual_seed(1)
    storages = [torch.randn(6, 14, generator=generator).to(dtype), torch.randn(10, 8, generator=generator).to(dtype)]
    return storages, [storages[0][:, ::2], storages[1][:, :4].T]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_strides_are_merged_in_a_copy_and_written_back(merge_on_host, dtype, rounding):
    results = []
    for merge in (merge_on_host, eager("merge_rank1_")):
        storages, weights = views(dtype)
        before = [storage.clone() for storage in storages]
        a, b = ([torch.linspace(-1, 2, weight.shape[dim]) for weight in weights] for dim in (1, 0))
        remainders = new_remainders(weights)
        for seed in range(2):
            merge(weights, a, b, remainders, 0.3, rounding, seed)
        assert all(not torch.equal(storage, old) for storage, old in zip(storages, before, strict=True))
        assert torch.equal(storages[0][:, 1::2], before[0][:, 1::2]), "nothing beside the view was touched"
        results.append([*storages, *remainders])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_remainders_may_lie_otherwise_than_their_weights(merge_on_host):
    results = []
    for merge in (merge_on_host, eager("merge_rank1_")):
        weights = [torch.arange(35.0).view(5, 7).bfloat16().T]
        remainders = [torch.zeros(7, 5, dtype=torch.int16)]
        merge(weights, [torch.full((5,), 0.01)], [torch.linspace(0, 1, 7)], remainders, 1.0, "remainder", 0)
        assert remainders[0].any()
        results.append((weights[0], remainders[0]))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_factors_of_any_strides_and_dtype(merge_on_host):
    a, b = torch.randn(4, 3).bfloat16(), torch.randn(5, 2)
    weights = [torch.zeros(5, 4)]
    merge_on_host(weights, [a[:, 1]], [b[:, 0]], [], 0.5, "nearest", 0)
    assert torch.equal(weights[0], (b[:, 0] * 0.5).unsqueeze(1) * a[:, 1].float())


def test_weights_that_share_memory_are_merged_one_after_the_other(merge_on_host):
    # at once, two blocks would read the same weight and one update would be lost
    tied = torch.zeros(4, 4)
    ones = [torch.ones(4), torch.ones(4)]
    assert merge_on_host([tied, tied.T], ones, ones, [], 1.0, "nearest", 0) == []
    assert torch.all(tied == 2)


def test_neighbours_in_one_storage_do_not_share_memory(merge_on_host):
    fused = torch.zeros(6, 4)
    ones = [torch.ones(4), torch.ones(4)]
    assert merge_on_host([fused[3:], fused[:3]], ones, [torch.ones(3)] * 2, [], 1.0, "nearest", 0) != []
    assert torch.all(fused == 1)
