"""The zeroth-order step against its floor, two bare forwards that stop at the option rows, and against MeZO's step."""

import copy

import torch

import xgblora
from benchmarks.measure import compare
from benchmarks.peers import MezoStep, full_logits_loss
from xgblora.training.objective import CandidateObjective

ROUNDS = 7


def mezo_batch(batch: dict) -> dict:
    """The same examples as MeZO's collator makes them: one sequence a candidate, its token at the end."""
    ids = batch["input_ids"][:, 0]
    targets = batch["option_targets"][:, :, 0]
    sequences = torch.stack([torch.cat((ids, targets[:, c : c + 1]), dim=1) for c in range(targets.shape[1])], dim=1)
    input_ids = sequences.flatten(0, 1)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "label": batch["label"]}


def test_step_against_floor_and_mezo(benchmark, model, batch, device):
    bare = copy.deepcopy(model)
    bare_objective, objective = (CandidateObjective(m, classification=True) for m in (bare, model))
    with torch.no_grad():
        ours, theirs = objective(model, batch).mean(), full_logits_loss(model, mezo_batch(batch))
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    adapters = xgblora.attach(model, alpha=16.0, seed=0)
    zo = xgblora.ZeroOrder(adapters, objective, eps=1e-3, lr=1e-6)
    parameters = [tensor for layer in adapters.layers.values() for tensor in (layer.a, layer.b)]
    mezo_step = MezoStep(parameters, lambda b: full_logits_loss(model, b), eps=1e-3, lr=1e-6)

    @torch.no_grad()
    def floor():
        for _ in range(2):
            bare_objective(bare, batch)

    def mezo():
        adapters.arena.read_master()
        mezo_step(mezo_batch(batch), seed=0)
        adapters.arena.restore()
        adapters.arena.read_live(0, 1)

    ways = {"step": lambda: zo.step(batch), "floor": floor, "mezo": mezo}
    compare(benchmark, "step", ways, rounds=ROUNDS, device=device)
