"""LOZO's step: low-rank perturbations that are taken back, U anew for each step, V for every nu."""

import copy

import pytest
import torch

from benchmarks.peers.lozo import LozoStep

EPS, LR = 1e-3, 0.1


@pytest.fixture
def model(make_opt):
    return make_opt(dtype=torch.float64)


@pytest.fixture
def step_of(losses_of):
    def make(model, *, lr: float = LR, **settings) -> LozoStep:
        return LozoStep(
            list(model.parameters()), lambda batch: losses_of(model, batch).mean(), eps=EPS, lr=lr, **settings
        )

    return make


def directions(model, right, seed: int, rank: int) -> list[torch.Tensor]:
    """U V^T and z of a step, with its V."""
    torch.manual_seed(seed)
    found = []
    for parameter, v in zip(model.parameters(), right, strict=True):
        shape = parameter.shape if v is None else (len(parameter), rank)
        drawn = torch.randn(shape, dtype=torch.float64)
        found.append(drawn if v is None else drawn @ v.T)
    return found


def moved(model, along: list[torch.Tensor], size: float):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, direction in zip(model.parameters(), along, strict=True):
            parameter.add_(size * direction)
    return model


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_update_is_the_formula(model, step_of, texts, losses_of, rank):
    before, step = copy.deepcopy(model), step_of(model, rank=rank, interval=2)
    for seed in (11, 12, 13):
        projected = step(texts, seed)
        along = directions(before, step.right, seed, rank)
        with torch.no_grad():
            plus, minus = (losses_of(moved(before, along, size), texts).mean().item() for size in (EPS, -EPS))
        assert projected == pytest.approx((plus - minus) / (2 * EPS), rel=1e-7)
        gradient = [d / rank if d.ndim == 2 else d for d in along]
        before = moved(before, gradient, -LR * projected)
        for ours, theirs in zip(model.parameters(), before.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_no_update_moves_is_restored_to_rounding(make_opt, step_of, texts, dtype):
    model = make_opt(dtype=dtype)
    before = copy.deepcopy(model)
    step_of(model, lr=0.0)(texts, 5)
    # three additions, each rounded to the dtype
    for ours, theirs in zip(model.parameters(), before.parameters(), strict=True):
        room = 3 * torch.finfo(dtype).eps * (theirs.abs().max().item() + 30 * EPS)
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=room)


def test_directions_are_of_low_rank_and_v_stays_for_the_interval(model, step_of, texts):
    step = step_of(model, rank=2, interval=3)
    kept = []
    for seed in range(7):
        step(texts, seed)
        kept.append([v for v in step.right if v is not None])
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    assert [v.shape for v in kept[0]] == [(parameter.shape[1], 2) for parameter in matrices]
    for early, late, same in ((0, 1, True), (1, 2, True), (2, 3, False), (3, 5, True), (5, 6, False)):
        assert all(torch.equal(a, b) == same for a, b in zip(kept[early], kept[late], strict=True))
    along = [d for d in directions(model, step.right, 3, 2) if d.ndim == 2]
    assert {torch.linalg.matrix_rank(d).item() for d in along} == {2}


def test_u_is_none_of_the_numbers_of_v(model, step_of, texts):
    step = step_of(model)
    step(texts, 0)
    torch.manual_seed(0)
    assert not torch.equal(torch.randn(step.right[0].shape, dtype=torch.float64), step.right[0])
