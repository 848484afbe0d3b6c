"""The ways to make a zeroth-order step on one batch: ours, its floor, and the peers', each ready to be called.

All minimise the classification loss of the same examples; where their losses differ, it is said. What they differ in:

- `step`, `uncaptured` (on a GPU only), `floor`: rank-1 adapters, candidates read off one row, the vocabulary for that
  row alone. The floor is two bare forwards of it.
- `floor_stacked`: the rows of both in one bare forward, as a small batch's step has them.
- `mezo`: the same adapters in MeZO's form, one text a candidate and every position through the vocabulary.
- `mezo_same_rows`: MeZO's form with one text an example. Over it `mezo` shows what a text a candidate costs.
- `lozo`, `grzo`: full parameters, as their papers have it, with the forward of `mezo_same_rows`. Their authors run them
  with a text a candidate, which would cost them what it costs MeZO.
- `full`: full parameters by `ZeroOrder`, with the forward of `step`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import xgblora
from benchmarks.floor import bare_forwards
from benchmarks.models import random_batch, random_model
from benchmarks.peers.grzo import GrzoStep
from benchmarks.peers.lozo import LozoStep
from benchmarks.peers.mezo import MezoStep, full_logits_loss, same_rows_losses
from xgblora.adapters import AdapterSet, Trainable
from xgblora.objectives.texts import CandidateObjective, classification
from xgblora.zo.stacking import stacked

SETTINGS = {"eps": 1e-3, "lr": 1e-6}


@dataclass(frozen=True)
class StepWays:
    """The ways to make a step.

    Attributes:
        by_name: each ready to be called.
        zo: ours, behind `step`.
        mismatch: how the peers' losses differ from ours; empty where they do not.
    """

    by_name: dict[str, Callable[[], object]]
    zo: xgblora.ZeroOrder
    mismatch: str


def step_ways(shape: str, device: torch.device, dtype: torch.dtype, length: int) -> StepWays:
    """The ways for a random model of a shape in `benchmarks.models.SHAPES`.

    There are three copies of the model: with adapters, bare and for the peers of full parameters, and for ours of full
    parameters, which needs 4 bytes a parameter more.

    Args:
        length: tokens of a text with a candidate.
    """
    model = random_model(shape, device, dtype)
    batch = random_batch(model, length)
    mismatch = mismatch_of_losses(model, batch)
    bare = copy.deepcopy(model)
    full = _steps(xgblora.FullParameters(copy.deepcopy(model)))
    adapters = xgblora.attach(model, alpha=16.0, seed=0)
    step = _steps(adapters)
    ways = {"step": lambda: step.step(batch)}
    if device.type == "cuda":
        uncaptured = _steps(adapters, capture="never")
        ways["uncaptured"] = lambda: uncaptured.step(batch)
    both = stacked(batch, step.forwards, step.forwards)
    ways["floor"] = made_once(lambda: bare_forwards(bare, batch, step.forwards))
    ways["floor_stacked"] = made_once(lambda: bare_forwards(bare, both, 1))
    ways |= _of_adapters(adapters, batch) | _of_full_parameters(bare, batch) | {"full": lambda: full.step(batch)}
    return StepWays(ways, step, mismatch)


def made_once(make: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    """A way that is made when it is called first: what fails then fails alone."""
    made: list[Callable[[], object]] = []

    def call() -> object:
        if not made:
            made.append(make())
        return made[0]()

    return call


def mismatch_of_losses(model: nn.Module, batch: dict) -> str:
    """How the mean loss of the examples differs between the forms; empty where it does not."""
    with torch.no_grad():
        ours = CandidateObjective(model, classification)(model, batch).mean()
        theirs = {
            "mezo": full_logits_loss(model, one_text_a_candidate(batch)),
            "same rows": same_rows_losses(model, one_text_an_example(batch)).mean(),
        }
    # of the peers' log-probabilities, about -10, bf16 keeps steps of 1/16
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 2e-2
    # a loss that is not a number is no match either
    wrong = {form: loss for form, loss in theirs.items() if not abs(loss - ours) <= tolerance * (1 + abs(ours))}
    return "; ".join(f"{form}: loss {loss:.5f}, ours {ours:.5f}" for form, loss in wrong.items())


def one_text_a_candidate(batch: dict) -> dict:
    """The examples of `random_batch` as MeZO's collator makes them: one text a candidate, its token at the end."""
    ids = batch["input_ids"][:, 0]
    targets = batch["option_targets"][:, :, 0]
    texts = torch.stack([torch.cat((ids, targets[:, c : c + 1]), dim=1) for c in range(targets.shape[1])], dim=1)
    input_ids = texts.flatten(0, 1)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "label": batch["label"]}


def one_text_an_example(batch: dict) -> dict:
    """The same examples without a candidate's token, and the candidates beside them."""
    input_ids = batch["input_ids"][:, 0]
    options = batch["option_targets"][:, :, 0]
    mask = torch.ones_like(input_ids)
    return {"input_ids": input_ids, "attention_mask": mask, "options": options, "label": batch["label"]}


def _steps(trainable: Trainable, capture: str = "auto") -> xgblora.ZeroOrder:
    objective = CandidateObjective(trainable.model, classification)
    return xgblora.ZeroOrder(trainable, objective, capture=capture, **SETTINGS)


def _of_adapters(adapters: AdapterSet, batch: dict) -> dict[str, Callable[[], object]]:
    """MeZO's step on the parameters of the adapters; for `ZeroOrder` they read perturbed copies of them."""
    model = adapters.model
    parameters = [tensor for layer in adapters.layers.values() for tensor in (layer.a, layer.b)]
    own = MezoStep(parameters, lambda texts: full_logits_loss(model, texts), **SETTINGS)
    same_rows = MezoStep(parameters, lambda texts: same_rows_losses(model, texts).mean(), **SETTINGS)

    candidates, examples = one_text_a_candidate(batch), one_text_an_example(batch)

    def on_master(step: MezoStep, texts: dict) -> None:
        adapters.arena.read_master()
        step(texts, seed=0)
        adapters.arena.restore()
        adapters.arena.read_live(0, 1)

    return {"mezo": lambda: on_master(own, candidates), "mezo_same_rows": lambda: on_master(same_rows, examples)}


def _of_full_parameters(model: nn.Module, batch: dict) -> dict[str, Callable[[], object]]:
    """The peers that move all parameters of `model`."""
    lozo = LozoStep(list(model.parameters()), lambda texts: same_rows_losses(model, texts).mean(), **SETTINGS)
    grzo = GrzoStep(model, lambda texts: same_rows_losses(model, texts), **SETTINGS)
    examples = one_text_an_example(batch)
    return {"lozo": lambda: lozo(examples, seed=0), "grzo": lambda: grzo(examples, seed=0)}
