"""Copies of a batch share the blocks below the first adapted one: the scores are the same, and nothing runs twice."""

import logging

import pytest
import torch

import xgblora
from tests.scoring.test_packing import MIXED
from xgblora.adapters import Depths
from xgblora.objectives.texts import CandidateObjective, classification
from xgblora.scoring import Collator, OptionScorer
from xgblora.scoring.blocks import blocks_of
from xgblora.scoring.together import ALL
from xgblora.zo.stacking import stacked

COPIES = 3


@pytest.fixture(params=["sdpa", "eager"])
def adapters(request, make_model, randomise_adapters):
    """Adapters in the upper two of four blocks, each of three copies reading others."""
    layers = {"n_layer": 4} if make_model.__name__ == "tiny_gpt2" else {"num_hidden_layers": 4}
    model = make_model(**layers)
    model.set_attn_implementation(request.param)
    adapters = xgblora.attach(model, alpha=4.0, depths=Depths(0.5, 1.0))
    randomise_adapters(adapters)
    adapters.arena.allocate_live(COPIES, torch.float32)
    adapters.arena.perturb(torch.tensor([5]), torch.tensor([0.5]), torch.tensor([1.0, -1.0, 0.0]), "gaussian")
    return adapters


@pytest.fixture
def scorer(adapters):
    """Made while one adapter is read, as a run does; then each copy reads its own."""
    scorer = OptionScorer(adapters.model)
    adapters.arena.read_live(0, COPIES)
    return scorer


def copies_of(adapters, batch: dict) -> dict:
    return stacked(batch, COPIES, COPIES, adapters.first_block())


@torch.no_grad()
def test_copies_score_as_they_do_when_each_runs_all_blocks(adapters, scorer):
    model, batch = adapters.model, Collator(0)(MIXED)
    expected = scorer.scores(model, stacked(batch, COPIES, COPIES))
    scores = scorer.scores(model, copies_of(adapters, batch))
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    one, other, _ = scores.chunk(COPIES)
    assert not torch.allclose(one, other, atol=1e-3)
    assert torch.equal(scorer.scores(model, copies_of(adapters, batch)), scores)


@torch.no_grad()
@pytest.mark.parametrize("packs", [True, False])
def test_blocks_below_run_one_copy_and_those_above_all(adapters, scorer, packs):
    model, batch = adapters.model, Collator(0)(MIXED)
    seen = []
    scorer.packs = packs
    scorer.scores(model, copies_of(adapters, batch))
    for number, block in enumerate(blocks_of(model).values()):
        norm = next(module for module in block.modules() if "norm" in type(module).__name__.lower())
        norm.register_forward_hook(lambda _, args, output, number=number: seen.append((number, len(output))))
    rows = batch["grid"][0] if packs else batch["input_ids"].flatten(0, 1).shape[0]
    scorer.scores(model, copies_of(adapters, batch))
    # the last block is called twice, see `OptionRows`
    assert list(dict.fromkeys(seen)) == [(0, rows), (1, rows), (2, COPIES * rows), (3, COPIES * rows)]


@torch.no_grad()
def test_copies_share_what_lies_above_remembered_states_too(adapters, scorer):
    model, batch = adapters.model, Collator(0)(MIXED)
    zeroth, first, *_ = blocks_of(model)
    known = {**batch, "states": scorer.states(model, batch, first), "states_at": first}
    expected = scorer.scores(model, copies_of(adapters, batch))
    seen = []
    for name in (zeroth, first):
        model.get_submodule(name).register_forward_hook(lambda _, args, output: seen.append(output is args[0]))
    scores = scorer.scores(model, copies_of(adapters, known))
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    # in the call with one copy the block between runs, and in that with all of them none
    assert seen == [True, False, True, True]


@torch.no_grad()
def test_the_model_is_as_it_was(adapters, scorer):
    model, ids = adapters.model, torch.arange(2, 26).view(3, 8)
    before = model(input_ids=ids).logits
    scorer.scores(model, copies_of(adapters, Collator(0)(MIXED)))
    assert torch.equal(model(input_ids=ids).logits, before)
    with pytest.raises(IndexError):
        batch = Collator(0)(MIXED)
        scorer.scores(model, copies_of(adapters, {**batch, "input_ids": batch["input_ids"] + 10_000}))
    assert torch.equal(model(input_ids=ids).logits, before)
    assert all("forward" not in vars(block) for block in blocks_of(model).values())


@torch.no_grad()
def test_blocks_that_hand_on_more_than_hidden_states_run_for_every_copy(adapters, caplog):
    model, made = adapters.model, []
    first, *_, last = blocks_of(model).values()
    first.register_forward_hook(lambda _, args, output: made.append(output.roll(1, dims=-1)))
    last.register_forward_hook(lambda _, args, output: output + made[-1])
    scorer, batch = OptionScorer(model), Collator(0)(MIXED)
    adapters.arena.read_live(0, COPIES)
    with caplog.at_level(logging.INFO, logger="xgblora"):
        scores = scorer.scores(model, copies_of(adapters, batch))
    assert "Every copy of a batch runs all layers: its logits are others then" in caplog.text
    assert torch.equal(scores, scorer.scores(model, stacked(batch, COPIES, COPIES)))


@torch.no_grad()
def test_what_quantised_layers_round_by_the_size_of_a_batch_keeps_no_copies_from_sharing(adapters, scorer):
    model = adapters.model
    first, *_ = blocks_of(model).values()
    first.register_forward_hook(lambda _, args, output: output + 1e-4 * len(output) * output.roll(1, dims=-1))
    model.is_quantized = True
    assert scorer.can_skip(model, adapters.first_block(), COPIES), scorer.reasons_not_to_skip


def test_a_paired_step_shares_its_trunk_and_agrees_with_a_sequential_one(make_model, caplog):
    gradients = []
    with caplog.at_level(logging.INFO, logger="xgblora"):
        for pairing in ("paired", "sequential"):
            model = make_model()
            adapters = xgblora.attach(model, alpha=4.0, depths=Depths(0.5, 1.0))
            objective = CandidateObjective(model, classification)
            zo = xgblora.ZeroOrder(adapters, objective, eps=1e-2, lr=0.1, directions=2, pairing=pairing)
            zo.step(Collator(0)(MIXED))
            # b starts at zero: the second step is the first with adapters that matter
            gradients.append(zo.step(Collator(0)(MIXED)).projected_grad)
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-4)
    assert caplog.text.count("All copies of a batch share 1 of 2 layers") == 1


@torch.no_grad()
def test_batches_that_are_padded_on_the_right_run_all_blocks(adapters, scorer, caplog):
    model, batch = adapters.model, Collator(0)(MIXED)
    scorer.packs, scorer._together = False, ALL
    expected = scorer.scores(model, stacked(batch, COPIES, COPIES))
    with caplog.at_level(logging.INFO, logger="xgblora"):
        assert not scorer.can_skip(model, adapters.first_block())
        assert not scorer.can_skip(model, adapters.first_block())
    assert caplog.text.count("Every copy of a batch runs all layers: batches are padded on the right") == 1
    assert torch.equal(scorer.scores(model, copies_of(adapters, batch)), expected)
