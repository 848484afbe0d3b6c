"""The end of training: what is left becomes the last booster, and the model is a plain one again."""

import torch

import xgblora
from xgblora.boosting.finish import finish


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def test_the_adapter_that_is_left_becomes_the_last_booster(trained):
    model, adapters, booster = trained()
    weights = adapters.weights()
    left = adapters.arena.master.clone()
    assert finish(adapters, booster, step=2, epoch=1.0)
    assert [merged.round for merged in booster.ledger.boosters] == [1, 2]
    assert torch.equal(booster.ledger.boosters[1].adapters, left)
    assert (booster.ledger.boosters[1].step, booster.ledger.boosters[1].epoch) == (2, 1.0)
    assert not any(isinstance(module, xgblora.Rank1Linear) for module in model.modules())
    assert all(torch.equal(w, layer.weight) for w, layer in zip(weights, adapters.layers.values(), strict=True))


def test_a_round_that_has_not_begun_leaves_no_booster(trained, token_batch):
    model, adapters, booster = trained()
    booster.merge()
    before = logits_of(model, token_batch())
    assert not finish(adapters, booster, step=2, epoch=1.0)
    assert len(booster.ledger) == 2
    assert torch.equal(logits_of(model, token_batch()), before)


def test_plain_lora_is_one_booster_of_its_rank(make_model, randomise_adapters, token_batch):
    model = make_model()
    adapters = xgblora.attach(model, alpha=2.0, rank=4)
    booster = xgblora.Booster(adapters)
    randomise_adapters(adapters)
    before, trained = logits_of(model, token_batch()), adapters.arena.master.clone()
    assert finish(adapters, booster, step=7, epoch=1.0, held_out_loss=0.5)
    (merged,) = booster.ledger.boosters
    assert (merged.step, merged.scale, merged.held_out_loss) == (7, 0.5, 0.5)
    assert torch.equal(merged.adapters, trained)
    assert torch.allclose(logits_of(model, token_batch()), before, atol=1e-5)
    assert not any(isinstance(module, xgblora.Rank1Linear) for module in model.modules())
