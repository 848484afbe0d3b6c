"""Recorded steps against unrecorded ones, on a CPU with a recorder that behaves as CUDA graphs do."""

import logging
from dataclasses import dataclass

import pytest
import torch

import xgblora
from xgblora.adapters import shared_inputs
from xgblora.objectives.texts import CandidateObjective, classification
from xgblora.scoring import Collator, EncodedExample, option_scorer
from xgblora.zo import step_graphs
from xgblora.zo.step_graphs import StepGraphs

CPU = torch.device("cpu")


BATCHES = 20


def batch_of(*lengths: int, seed: int, padded: bool) -> dict:
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for length in lengths:
        ids = torch.randint(2, 60, (length,), generator=generator).tolist()
        examples.append(EncodedExample((tuple(ids),), ((0, length - 1),), (((0, 5),), ((0, 6),)), length % 2))
    batch = Collator(1)(examples)
    return {name: value for name, value in batch.items() if not (padded and name == "grid")}


def batches(padded: bool) -> list[dict]:
    """Two shapes by turns, and now and then one that is seldom there."""
    shapes = [(9, 5, 3, 7), (6, 6, 6)]
    return [
        batch_of(*((4, 11) if number in (3, 8) else shapes[number % 2]), seed=number, padded=padded)
        for number in range(BATCHES)
    ]


@dataclass
class Outcome:
    """All that a run of `train` leaves."""

    losses: torch.Tensor
    projected_grads: torch.Tensor
    estimates: torch.Tensor
    values: list[torch.Tensor]
    tape: bytes
    zo: xgblora.ZeroOrder

    def assert_same_bits(self, other: "Outcome") -> None:
        for name in ("losses", "projected_grads", "estimates"):
            assert torch.equal(getattr(self, name), getattr(other, name)), name
        for mine, theirs in zip(self.values, other.values, strict=True):
            assert torch.equal(mine, theirs)
        assert self.tape == other.tape


def train(
    model, recorder=None, *, steps=10, padded=False, accumulate=1, merge_every=0, poison=(), **options
) -> Outcome:
    """Some steps, with a merge after every `merge_every`th, and losses that are not finite in the steps `poison`."""
    objective = CandidateObjective(model, classification)
    assert objective.packs
    adapters = xgblora.attach(model, alpha=4.0)
    booster = xgblora.Booster(adapters)
    zo = xgblora.ZeroOrder(adapters, objective, eps=1e-2, seed=3, **{"lr": 1e-2, **options})
    if recorder is not None:
        zo.graphs = StepGraphs(recorder, CPU, zo._tensors)
    tape = xgblora.start_tape(zo, booster)
    results, estimates = [], []
    given = batches(padded)
    for step in range(steps):
        bias = model.get_decoder().layers[0].self_attn.out_proj.bias
        kept = bias.data.clone()
        if step in poison:
            bias.data.fill_(float("inf"))
        for part in range(accumulate):
            estimates.append(zo.estimate(given[(step * accumulate + part) % BATCHES], weight=1 / accumulate))
        bias.data.copy_(kept)
        results.append(zo.update(lr=1e-2 / (1 + step)))
        if merge_every and (step + 1) % merge_every == 0:
            booster.merge(step=step + 1)
    arena = adapters.arena
    return Outcome(
        torch.stack([result.loss for result in results]),
        torch.stack([result.projected_grad for result in results]),
        torch.stack(estimates),
        [arena.master, arena.live, *arena.moments.values(), *adapters.weights(), zo.skipped_steps],
        tape.to_bytes(),
        zo,
    )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"steps": 20, "directions": 2, "pairing": "paired", "merge_every": 7, "optimizer": "adam"}, id="paired"
        ),
        pytest.param({"directions": 2, "pairing": "sequential", "accumulate": 2, "merge_every": 6}, id="sequential"),
        pytest.param({"padded": True, "optimizer": "momentum", "weight_decay": 0.1}, id="padded"),
        pytest.param({"directions": 3, "two_sided": False, "normalise": True, "accumulate": 2}, id="one-sided"),
    ],
)
def test_recorded_steps_have_the_bits_of_unrecorded_ones(make_opt, cpu_recorder, monkeypatch, options):
    monkeypatch.setattr(option_scorer, "_is_on_gpu", lambda tensor: True)
    recorder = cpu_recorder()
    recorded = train(make_opt(), recorder, **options)
    recorded.assert_same_bits(train(make_opt(), **options))
    assert recorded.zo.graphs.reason is None
    # two shapes and the update; the third shape did not come often enough
    assert len(recorded.zo.graphs) == recorder.recorded == 3
    steps = options.get("steps", 10)
    assert recorder.replayed >= steps * (1 + options.get("accumulate", 1)) - 3 * step_graphs.SEEN_BEFORE_RECORDING - 2


@pytest.mark.parametrize("pairing", ["paired", "sequential"])
def test_recorded_steps_that_share_dots_have_the_bits_of_steps_that_do_not(
    make_opt, cpu_recorder, monkeypatch, pairing
):
    monkeypatch.setattr(option_scorer, "_is_on_gpu", lambda tensor: True)
    plain = train(make_opt(), pairing=pairing)
    shared, row_dots = [], shared_inputs.row_dots
    monkeypatch.setattr(shared_inputs, "reads_dots", lambda x, weight: True)
    monkeypatch.setattr(shared_inputs, "row_dots", lambda x, a: shared.append(len(a)) or row_dots(x, a))
    recorder = cpu_recorder()
    recorded = train(make_opt(), recorder, pairing=pairing)
    recorded.assert_same_bits(plain)
    assert recorder.replayed > 10
    assert set(shared) == {2}


def test_steps_with_losses_that_are_not_finite_are_skipped_by_a_graph_too(make_opt, cpu_recorder):
    recorder = cpu_recorder()
    recorded = train(make_opt(), recorder, poison=(2, 5, 8), optimizer="adam", merge_every=6)
    plain = train(make_opt(), poison=(2, 5, 8), optimizer="adam", merge_every=6)
    assert torch.equal(recorded.projected_grads, plain.projected_grads)
    assert recorded.tape == plain.tape
    assert recorded.zo.skipped_steps.item() == 3
    for mine, theirs in zip(recorded.values, plain.values, strict=True):
        assert torch.equal(mine, theirs)
    assert recorder.replayed > 10


def test_a_mask_that_transformers_reads_is_not_recorded(make_opt, cpu_recorder, caplog):
    recorder = cpu_recorder()
    with caplog.at_level(logging.INFO, logger="xgblora"):
        recorded = train(make_opt(), recorder, padded=True)
    recorded.assert_same_bits(train(make_opt(), padded=True))
    (line,) = [record.message for record in caplog.records if "not captured" in record.message]
    assert line.startswith("ZO: the step is not captured as CUDA graphs: it waits for the device (RuntimeError: ")
    # the update may have been; what is there is dropped
    assert len(recorded.zo.graphs) == 0


def test_the_mask_of_padded_batches_on_a_gpu_gives_the_same_scores(make_model, monkeypatch):
    for attention in ("sdpa", "eager"):
        model = make_model()
        model.set_attn_implementation(attention)
        objective = CandidateObjective(model, classification)
        batch = batch_of(9, 5, 3, 7, seed=0, padded=True)
        with torch.no_grad():
            plain = objective(model, batch)
            monkeypatch.setattr(option_scorer, "_is_on_gpu", lambda tensor: True)
            torch.testing.assert_close(objective(model, batch), plain, rtol=1e-5, atol=1e-6)
            monkeypatch.undo()


def test_work_over_several_devices_is_not_recorded(cpu_recorder):
    graphs = StepGraphs(cpu_recorder(), torch.device("cpu", 1), lambda: [torch.zeros(1)])
    for number in range(5):
        (output,) = graphs.run("part", lambda _, number=number: (torch.full((1,), number),), {})
        assert output.item() == number
    assert graphs.reason == "the model lies on cpu:1 and on cpu" and not len(graphs)
