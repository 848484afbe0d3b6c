"""The zeroth-order step against its floor, the bare forwards that stop at the option rows, and against MeZO's step."""

import copy

import pytest
import torch
from torch import nn

import xgblora
from benchmarks.conftest import random_batch, random_model
from benchmarks.floor import bare_forwards
from benchmarks.measure import Work, compare
from benchmarks.peers import MezoStep, full_logits_loss
from xgblora.objectives.texts import CandidateObjective, classification

published = pytest.mark.published
CASES = [
    pytest.param("small", "float32", id="small-float32"),
    *(
        pytest.param(shape, dtype, id=f"{shape}-{dtype}", marks=published)
        for shape in ("opt-125m", "opt-350m")
        for dtype in ("float32", "bfloat16")
    ),
]


def mezo_batch(batch: dict) -> dict:
    """The same examples as MeZO's collator makes them: one sequence a candidate, its token at the end."""
    ids = batch["input_ids"][:, 0]
    targets = batch["option_targets"][:, :, 0]
    sequences = torch.stack([torch.cat((ids, targets[:, c : c + 1]), dim=1) for c in range(targets.shape[1])], dim=1)
    input_ids = sequences.flatten(0, 1)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "label": batch["label"]}


def forward_flops(model: nn.Module, tokens: int) -> float:
    """2 FLOP a token and weight of the layers; the embeddings are read, and the vocabulary sees few rows."""
    layers = sum(parameter.numel() for parameter in model.get_decoder().layers.parameters())
    return 2.0 * layers * tokens


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_step_against_floor_and_mezo(benchmark, device, shape, name):
    dtype, length = getattr(torch, name), 64 if device.type == "cuda" else 48
    model = random_model(shape, device, dtype)
    batch = random_batch(model, length)
    bare = copy.deepcopy(model)
    objective = CandidateObjective(model, classification)
    with torch.no_grad():
        ours, theirs = objective(model, batch).mean(), full_logits_loss(model, mezo_batch(batch))
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    adapters = xgblora.attach(model, alpha=16.0, seed=0)
    zo = xgblora.ZeroOrder(adapters, objective, eps=1e-3, lr=1e-6)
    uncaptured = xgblora.ZeroOrder(adapters, objective, eps=1e-3, lr=1e-6, capture="never")
    parameters = [tensor for layer in adapters.layers.values() for tensor in (layer.a, layer.b)]
    mezo_step = MezoStep(parameters, lambda b: full_logits_loss(model, b), eps=1e-3, lr=1e-6)

    def mezo():
        adapters.arena.read_master()
        mezo_step(mezo_batch(batch), seed=0)
        adapters.arena.restore()
        adapters.arena.read_live(0, 1)

    ways = {"step": lambda: zo.step(batch), "floor": bare_forwards(bare, batch, zo.forwards), "mezo": mezo}
    if device.type == "cuda":
        ways["uncaptured"] = lambda: uncaptured.step(batch)
    work = Work(flops=zo.forwards * forward_flops(bare, batch["input_ids"].numel()), dtype=dtype)
    compare(benchmark, "step", ways, rounds=5 if shape.startswith("opt") else 15, device=device, work=work)
    if device.type == "cuda":
        benchmark.extra_info["graphs"] = len(zo.graphs)
