"""`residual` against the same computed by hand in fp64, in the primal form of ridge regression."""

import logging

import pytest
import torch

import xgblora
from tests.boosting.starts.reader import SAMPLES, Reader, next_words, one_of_two, texts
from xgblora.adapters.adapter_set import fresh_adapter
from xgblora.boosting import Samples
from xgblora.boosting.finish import finish
from xgblora.boosting.peft_adapter import export_peft
from xgblora.boosting.starts import residual as module
from xgblora.boosting.starts.forwards import EXAMPLES
from xgblora.boosting.starts.residual import RIDGE, residual
from xgblora.errors import InputError

LAYERS = ["left", "right", "up"]
CPU = torch.device("cpu")


def a_of(adapters, start):
    """`a` [rank, K] of each layer, fp64."""
    return {slot.name: slot.views(start.unsqueeze(0))[0][0].double() for slot in adapters.arena.slots}


def measured(rank=1, samples=SAMPLES, round=0, model=None):
    adapters = xgblora.attach(model or Reader(), LAYERS, alpha=2.0, rank=rank, seed=3)
    with torch.no_grad():
        return adapters, a_of(adapters, residual(adapters, samples, round))


@torch.no_grad()
def by_hand(rank):
    """`a` [rank, K] of each layer, up to the signs of its rows: fp64 throughout, all words of all texts."""
    model = Reader(torch.float64)
    inputs, at_last, pulls = ({name: [] for name in LAYERS} for _ in range(3))
    pulls = []
    for batch in texts()(0, EXAMPLES):
        for ids, mask, following in zip(batch["input_ids"], batch["attention_mask"], batch["next"], strict=True):
            x = model.words(ids[mask.bool()])
            up = torch.tanh(torch.cat((model.left(x), model.right(x)), dim=1))
            probabilities = torch.softmax(model.head(x[-1] + model.up(up[-1])), dim=0)
            probabilities[following] -= 1
            pulls.append(-probabilities @ model.head.weight)
            for name, read in (("left", x), ("right", x), ("up", up)):
                inputs[name].append(read)
                at_last[name].append(read[-1])
    targets, found = torch.stack(pulls), {}
    for name in LAYERS:
        x, all_x = torch.stack(at_last[name]), torch.cat(inputs[name])
        ridge = RIDGE * x.square().sum(dim=1).mean()
        weights = torch.linalg.inv(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype)) @ x.T @ targets
        explained = targets.T @ x @ weights
        _, directions = torch.linalg.eigh((explained + explained.T) / 2)
        a = (weights @ directions.flip(1)[:, :rank]).T
        wanted = all_x.square().sum(dim=1).mean() / (3 * x.shape[1])
        found[name] = a * (wanted / (all_x @ a.T).square().mean(dim=0)).sqrt().unsqueeze(1)
    return found


@pytest.mark.parametrize("rank", [1, 3])
def test_it_is_the_ridge_regression_of_the_residuals(rank):
    _, ours = measured(rank)
    for name, theirs in by_hand(rank).items():
        signs = (ours[name] * theirs).sum(dim=1, keepdim=True).sign()
        # of 16 bits a number
        assert torch.allclose(ours[name], signs * theirs, rtol=2**-7, atol=2e-4), name
        assert torch.equal(ours[name], ours[name].to(torch.bfloat16).double())


def test_b_is_zero_and_each_round_looks_at_texts_of_its_own():
    adapters = xgblora.attach(Reader(), LAYERS, alpha=2.0, seed=3)
    with torch.no_grad():
        first, again, second = (residual(adapters, SAMPLES, round) for round in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not any(slot.views(first.unsqueeze(0))[1].any() for slot in adapters.arena.slots)


def test_padding_plays_no_role():
    _, ours = measured()
    _, padded = measured(samples=Samples(next_words, texts(more_padding=3)))
    assert all(torch.allclose(ours[name], padded[name], rtol=2**-8) for name in LAYERS)


def test_layers_that_read_one_input_share_the_fit(monkeypatch):
    fits, fit = [], module._fit
    monkeypatch.setattr(module, "_fit", lambda x, *rest: fits.append(x.shape) or fit(x, *rest))
    _, ours = measured()
    assert fits == [(EXAMPLES, 6), (EXAMPLES, 10)]
    assert torch.equal(ours["left"], ours["right"])


def test_where_residuals_lie_in_fewer_directions_than_the_rank_the_rest_is_fresh():
    adapters, ours = measured(rank=3, samples=Samples(one_of_two, texts()))
    fresh = a_of(adapters, fresh_adapter(adapters.arena.slots, 3, 0, CPU))
    for name in LAYERS:
        assert not torch.equal(ours[name][0], fresh[name][0])
        assert torch.equal(ours[name][1:], fresh[name][1:])


def test_more_ranks_than_components_are_no_mistake():
    adapters, ours = measured(rank=8)
    fresh = a_of(adapters, fresh_adapter(adapters.arena.slots, 3, 0, CPU))
    assert all(torch.equal(ours[name][6:], fresh[name][6:]) for name in LAYERS), "the embeddings have 6 dimensions"


@pytest.mark.parametrize("factor", [0.0, float("nan")])
def test_without_residuals_it_starts_fresh_and_says_so(factor, caplog):
    with caplog.at_level(logging.WARNING, logger="xgblora"):
        adapters, ours = measured(samples=Samples(lambda model, batch: factor * next_words(model, batch), texts()))
    fresh = a_of(adapters, fresh_adapter(adapters.arena.slots, 3, 0, CPU))
    assert all(torch.equal(ours[name], fresh[name]) for name in LAYERS)
    assert [record.message for record in caplog.records] == [
        "XGBLoRA: Round 1 finds no residuals that it could start at; it starts fresh"
    ]


def test_a_layer_that_reads_zeros_starts_fresh():
    model = Reader()
    for layer in (model.left, model.right):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    adapters, ours = measured(model=model)
    fresh = a_of(adapters, fresh_adapter(adapters.arena.slots, 3, 0, CPU))
    assert torch.equal(ours["up"], fresh["up"])
    assert not torch.equal(ours["left"], fresh["left"])


def test_a_model_in_bf16_has_almost_the_same():
    (_, ours), (_, theirs) = measured(model=Reader(torch.bfloat16)), measured()
    for name in LAYERS:
        assert abs(torch.cosine_similarity(ours[name], theirs[name])) > 0.99


class Headless(Reader):
    def get_output_embeddings(self):
        return None


@pytest.mark.parametrize(
    ("make", "objective", "said"),
    [
        (Headless, next_words, "the model has no output embeddings at which residuals could be; use data"),
        (
            Reader,
            lambda model, batch: model(batch["input_ids"]).argmax(dim=-1).float().mean(dim=1),
            "the objective has no gradient; use data",
        ),
        (
            Reader,
            lambda model, batch: next_words(model, batch) + next_words(model, batch),
            "the objective calls the output embeddings 2 times a batch, not once; use data",
        ),
    ],
)
def test_what_it_cannot_start_at_is_said_in_one_line(make, objective, said):
    with pytest.raises(InputError, match=f"^reinit=residual: {said}$"):
        measured(model=make(), samples=Samples(objective, texts()))


def test_peft_computes_what_the_merged_model_does(tmp_path):
    peft = pytest.importorskip("peft")
    adapters = xgblora.attach(Reader(), LAYERS, alpha=2.0, seed=3)
    booster = xgblora.Booster(adapters, reinit="residual", samples=SAMPLES)
    zo = xgblora.ZeroOrder(adapters, next_words, eps=1e-2, lr=0.5, seed=3)
    for step, batch in enumerate(texts()(7, 20), start=1):
        zo.step_index = step
        zo.step(batch)
        if step in (2, 4):
            booster.merge(step=step)
    finish(adapters, booster, step=5, epoch=1.0)
    assert (len(booster.ledger), list(booster.ledger.measured)) == (3, [0, 1, 2])
    export_peft(booster.ledger, tmp_path / "adapter", task_type=None)
    adapted, ids = peft.PeftModel.from_pretrained(Reader(), tmp_path / "adapter"), texts()(8, 4)[0]["input_ids"]
    with torch.no_grad():
        merged = adapters.model(ids)
        assert torch.allclose(adapted(ids), merged, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(Reader()(ids), merged, rtol=1e-2, atol=1e-2)
