"""Lengths and angles of rounds, against the weights themselves."""

import pytest
import torch
from torch import nn

import xgblora
from xgblora.boosting.geometry import Path, update_of


@pytest.mark.parametrize(("rank", "reinit"), [(1, "kaiming"), (3, "kaiming"), (1, "warm")])
def test_they_are_those_of_what_the_rounds_changed_in_the_weights(rank, reinit):
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(5, 3), "second": nn.Linear(3, 7)})
    plain = [layer.weight.detach().clone().double() for layer in model.values()]
    booster = xgblora.Booster(xgblora.attach(model, ["first", "second"], alpha=2.0, rank=rank), reinit=reinit)
    path, positions, measured = Path(booster.ledger.slots), [torch.zeros(36)], []
    for round in range(3):
        booster.adapters.arena.master.copy_(torch.randn(booster.adapters.arena.master.shape))
        booster.merge()
        measured.append(path.add(update_of(booster.ledger, round)))
        # what the next adapter starts with is the weights' offset, and no change of the model
        start = booster.ledger.start_offset(round + 1)
        offsets = [0.0, 0.0]
        if start is not None:
            views = (slot.views(start.adapters.unsqueeze(0)) for slot in booster.ledger.slots)
            offsets = [start.scale * (b[0].T @ a[0]) for a, b in views]
        weights = [layer.weight.detach().double() for layer in booster.adapters.layers.values()]
        changes = [w - offset - before for w, offset, before in zip(weights, offsets, plain, strict=True)]
        positions.append(torch.cat([change.flatten() for change in changes]).float())
    for round, (length, cosine) in enumerate(measured):
        before, after = positions[round], positions[round + 1]
        assert length == pytest.approx(float((after - before).norm()), rel=1e-4)
        expected = None if round == 0 else float(torch.cosine_similarity(after - before, before, dim=0))
        assert cosine == pytest.approx(expected, abs=1e-4)
    assert path.rounds == 3


def test_a_round_that_did_nothing_has_no_direction():
    model = nn.ModuleDict({"first": nn.Linear(5, 3)})
    booster = xgblora.Booster(xgblora.attach(model, ["first"], alpha=2.0))
    path = Path(booster.ledger.slots)
    for round in range(2):
        booster.merge()
        assert path.add(update_of(booster.ledger, round)) == (0.0, None)
