"""Captured steps on a real GPU: the bits of uncaptured ones, and nothing that waits for the device."""

from contextlib import contextmanager

import pytest
import torch

import xgblora
from xgblora.objectives.texts import CandidateObjective, classification
from xgblora.scoring import Collator, EncodedExample
from xgblora.zo.step_graphs import SEEN_BEFORE_RECORDING

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda:0")
STEPS = 20
FORMS = ["packed", "padded"]


def batch_of(lengths: tuple[int, ...], form: str, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for length in lengths:
        ids = torch.randint(2, 60, (length,), generator=generator).tolist()
        examples.append(EncodedExample((tuple(ids),), ((0, length - 1),), (((0, 5),), ((0, 6),)), length % 2))
    batch = Collator(1)(examples)
    if form == "padded":
        del batch["grid"]
    return {name: value.to(CUDA) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def batches(form: str) -> list[dict]:
    """Two shapes by turns, one of them without padding now and then."""
    shapes = [(9, 5, 3, 7), (6, 6, 6)]
    return [batch_of(shapes[step % 2], form, step) for step in range(STEPS)]


def train(model, form, capture, **options):
    """Losses, weights and tape of 20 steps with two merges, and the estimator."""
    objective = CandidateObjective(model, classification)
    assert objective.packs
    adapters = xgblora.attach(model, alpha=4.0)
    booster = xgblora.Booster(adapters)
    zo = xgblora.ZeroOrder(adapters, objective, eps=1e-2, lr=1e-2, seed=3, capture=capture, **options)
    tape = xgblora.start_tape(zo, booster)
    losses = []
    for step, batch in enumerate(batches(form)):
        losses.append(zo.step(batch).loss)
        if step in (7, 15):
            booster.merge(step=step + 1)
    arena = adapters.arena
    values = [arena.master, arena.live, *arena.moments.values(), *adapters.weights()]
    return torch.stack(losses), values, tape.to_bytes(), zo


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{"directions": 2, "pairing": "paired", "optimizer": "adam"}, {"directions": 2, "pairing": "sequential"}],
    ids=["paired", "sequential"],
)
def test_captured_steps_have_the_bits_of_uncaptured_ones(make_model, dtype, form, options):
    losses, values, tape, zo = train(make_model(dtype=dtype).to(CUDA), form, "auto", **options)
    assert zo.graphs.reason is None
    assert len(zo.graphs) == 3, "two shapes and the update"
    plain_losses, plain_values, plain_tape, plain = train(make_model(dtype=dtype).to(CUDA), form, "never", **options)
    assert plain.graphs is None
    assert torch.equal(losses, plain_losses)
    assert tape == plain_tape
    for value, other in zip(values, plain_values, strict=True):
        assert torch.equal(value, other)


@contextmanager
def refusing_to_wait():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("capture", ["auto", "never"])
@pytest.mark.parametrize("form", FORMS)
def test_a_step_waits_for_nothing(make_opt, form, capture):
    model = make_opt().to(CUDA)
    objective = CandidateObjective(model, classification)
    zo = xgblora.ZeroOrder(xgblora.attach(model, alpha=4.0), objective, capture=capture)
    batch = batches(form)[0]
    for _ in range(SEEN_BEFORE_RECORDING + 2):
        zo.step(batch)
    with refusing_to_wait():
        for _ in range(2):
            zo.estimate(batch, weight=0.5)
            zo.estimate(batch, weight=0.5)
            zo.update(lr=1e-3)
    assert torch.isfinite(zo.step(batch).loss)


def test_an_objective_that_waits_is_not_captured(make_opt):
    model = make_opt().to(CUDA)
    objective = CandidateObjective(model, classification)

    def reading(model, batch):
        losses = objective(model, batch)
        return losses if losses.max() < 1e9 else losses * 0.0

    zo = xgblora.ZeroOrder(xgblora.attach(model, alpha=4.0), reading)
    for batch in [batches("packed")[0]] * (SEEN_BEFORE_RECORDING + 2):
        result = zo.step(batch)
    assert zo.graphs.reason.startswith("it waits for the device")
    assert torch.isfinite(result.loss)
    assert len(zo.graphs) == 0


def test_what_torch_cannot_capture_runs_uncaptured(make_opt):
    model = make_opt().to(CUDA)
    objective = CandidateObjective(model, classification)

    def synchronising(model, batch):
        # no copy, so that only the capture itself finds it
        torch.cuda.synchronize()
        return objective(model, batch)

    zo = xgblora.ZeroOrder(xgblora.attach(model, alpha=4.0), synchronising)
    plain = xgblora.ZeroOrder(zo.adapters, synchronising, capture="never")
    start = zo.adapters.arena.master.clone()
    batch = batches("packed")[0]
    losses = torch.stack([zo.step(batch).loss for _ in range(6)])
    assert zo.graphs.reason is not None
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    zo.adapters.arena.master.copy_(start)
    zo.adapters.arena.restore()
    assert torch.equal(losses, torch.stack([plain.step(batch).loss for _ in range(6)]))


def test_many_shapes_share_the_memory_of_the_largest(make_opt):
    model = make_opt().to(CUDA)
    zo = xgblora.ZeroOrder(xgblora.attach(model, alpha=4.0), CandidateObjective(model, classification))
    held = []
    for examples in (16, 12, 8, 4):
        batch = batch_of((8,) * examples, "packed", 0)
        for _ in range(SEEN_BEFORE_RECORDING + 2):
            zo.step(batch)
        held.append(zo.graphs._recorder.memory_share())
    assert len(zo.graphs) == 5
    assert 0 < held[-1] <= 2 * held[0]
