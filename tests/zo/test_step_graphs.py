"""Recorded steps against unrecorded ones, on a CPU with a recorder that behaves as CUDA graphs do."""

import logging
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import xgblora
from xgblora.adapters import shared_inputs
from xgblora.errors import InputError
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


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 1)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))).squeeze(-1)


def squared_errors(model, batch):
    return (model(batch["x"]) - batch["y"]).square()


@pytest.fixture
def toy(randomise_adapters):
    """A function `(recorder)` that makes a `ZeroOrder` of a toy and graphs for it."""

    def make(recorder=None, objective=squared_errors):
        adapters = xgblora.attach(Toy(), ["first", "second"], alpha=2.0)
        randomise_adapters(adapters, std=0.5)
        zo = xgblora.ZeroOrder(adapters, objective, eps=1e-2, lr=0.05, seed=1)
        if recorder is not None:
            zo.graphs = StepGraphs(recorder, CPU, zo._tensors)
        return zo

    return make


def toy_batch(examples=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(examples, 6, generator=generator), "y": torch.randn(examples, generator=generator)}


def take(zo, count=6, examples=8):
    return torch.stack([zo.step(toy_batch(examples, seed)).loss for seed in range(count)])


def test_on_a_cpu_and_where_it_is_not_wanted_there_are_no_graphs(toy):
    zo = toy()
    assert zo.graphs is None
    assert xgblora.ZeroOrder(zo.adapters, squared_errors, capture="never").graphs is None
    with pytest.raises(InputError, match=r"^capture=always: must be one of auto, never$"):
        xgblora.ZeroOrder(zo.adapters, squared_errors, capture="always")


def test_boosters_in_a_bank_and_new_live_rows_drop_the_graphs(toy, cpu_recorder):
    outcomes = []
    for recorder in (cpu_recorder(), None):
        zo = toy(recorder)
        losses = [take(zo)]
        layer = zo.adapters.layers["first"]
        layer.extend_bank(torch.ones(1, 6), torch.ones(1, 5))
        losses.append(take(zo))
        zo.adapters.arena.allocate_live(2, torch.float32)
        zo.adapters.arena.read_live(0, 1)
        losses.append(take(zo))
        outcomes.append(torch.cat([*losses, zo.adapters.arena.master]))
        if recorder is not None:
            assert recorder.recorded == 6, "the losses and the update, three times"
            assert len(zo.graphs) == recorder.forgotten == 2
    assert torch.equal(*outcomes)


def test_a_round_that_trains_other_layers_has_graphs_of_its_own(toy, cpu_recorder):
    outcomes = []
    for recorder in (cpu_recorder(), None):
        zo = toy(recorder)
        arena = zo.adapters.arena
        losses = [take(zo)]
        for options in ({"names": ["first"]}, {"names": ["second"], "trains_a": False}, {}):
            # as a merge leaves them
            arena.forget_moments()
            for slot in arena.slots:
                arena.a_and_b(slot)[1].zero_()
            arena.train(**options)
            arena.restore()
            losses.append(take(zo))
        zo.adapters.layers["first"].active = False
        losses.append(take(zo))
        outcomes.append(torch.cat([*losses, arena.master]))
        if recorder is not None:
            assert zo.graphs.reason is None
            assert recorder.recorded == 9, "the losses five times, the update four times"
    assert torch.equal(*outcomes)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_losses_of_full_parameters_are_recorded(cpu_recorder, optimizer):
    outcomes = []
    for recorder in (cpu_recorder(), None):
        full = xgblora.FullParameters(Toy())
        zo = xgblora.ZeroOrder(full, squared_errors, eps=1e-2, lr=0.05, directions=2, optimizer=optimizer)
        if recorder is not None:
            zo.graphs = StepGraphs(recorder, CPU, zo._tensors)
        losses = take(zo)
        zo.estimate(toy_batch())
        zo.abandon_step()
        for _ in range(2):
            zo.estimate(toy_batch(seed=30), weight=0.5)
        zo.update()
        outcomes.append(torch.cat([losses, full.arena.master, full.arena.live[0]]))
        if recorder is not None:
            assert zo.graphs.reason is None
            assert recorder.recorded == 1
            assert recorder.replayed == 7
    assert torch.equal(*outcomes)


def test_a_weight_that_was_moved_drops_the_graphs(toy, cpu_recorder, caplog):
    caplog.set_level(logging.INFO, logger="xgblora")
    outcomes = []
    for recorder in (cpu_recorder(), None):
        zo = toy(recorder)
        take(zo)
        weight = zo.adapters.layers["second"].base.weight
        weight.data = weight.data * 2.0
        outcomes.append(torch.cat([take(zo), zo.adapters.arena.master]))
    assert torch.equal(*outcomes)
    said = [record.message for record in caplog.records if "CUDA graphs" in record.message]
    assert said == ["ZO: the step runs as CUDA graphs, one for each batch shape"]


def test_an_abandoned_step_is_taken_again(toy, cpu_recorder):
    outcomes = []
    for recorder in (cpu_recorder(), None):
        zo = toy(recorder)
        take(zo)
        zo.estimate(toy_batch())
        zo.abandon_step()
        outcomes.append(torch.cat([take(zo), zo.adapters.arena.master]))
    assert torch.equal(*outcomes)


def test_results_are_not_written_over_by_the_next_step(toy, cpu_recorder):
    zo = toy(cpu_recorder())
    take(zo)
    result = zo.step(toy_batch(seed=50))
    kept = result.loss.clone(), result.projected_grad.clone()
    zo.step(toy_batch(seed=51))
    assert torch.equal(result.loss, kept[0])
    assert torch.equal(result.projected_grad, kept[1])


def test_the_layers_read_live_after_a_replay_as_after_a_step(toy, cpu_recorder):
    zo = toy(cpu_recorder())
    take(zo)
    zo.adapters.arena.read_master()
    zo.step(toy_batch())
    arena = zo.adapters.arena
    assert zo.adapters.layers["first"].live[0].data_ptr() == arena.slots[0].views(arena.live)[0].data_ptr()


def test_a_failing_objective_raises_its_own_error_and_recording_goes_on(toy, cpu_recorder):
    fails = False

    def objective(model, batch):
        if fails:
            raise RuntimeError("out of memory")
        return squared_errors(model, batch)

    recorder = cpu_recorder()
    zo = toy(recorder, objective)
    take(zo, 2)
    fails = True
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        zo.step(toy_batch())
    fails = False
    take(zo)
    assert recorder.recorded == 2
    assert zo.graphs.reason is None


def test_no_more_graphs_than_allowed_the_last_used_ones(toy, cpu_recorder, monkeypatch):
    monkeypatch.setattr(step_graphs, "MAX_GRAPHS", 3)
    outcomes = []
    for recorder in (cpu_recorder(), None):
        zo = toy(recorder)
        losses = [take(zo, 4, examples) for examples in (8, 4, 6, 8, 8)]
        outcomes.append(torch.cat([*losses, zo.adapters.arena.master]))
        if recorder is not None:
            assert len(zo.graphs) == 3
            assert recorder.recorded == 5, "the update, 8, 4, 6, and 8 again, which 6 had put out"
    assert torch.equal(*outcomes)


def test_past_the_memory_bound_no_graphs_are_added(toy, cpu_recorder, caplog):
    recorder = cpu_recorder()
    zo = toy(recorder)
    with caplog.at_level(logging.INFO, logger="xgblora"):
        first = take(zo, 4)
        recorder.share = 0.5
        losses = torch.cat([first, take(zo, 8, examples=4), take(zo, 8, examples=6)])
    plain = toy()
    assert torch.equal(losses, torch.cat([take(plain, 4), take(plain, 8, examples=4), take(plain, 8, examples=6)]))
    assert len(zo.graphs) == 2
    assert recorder.recorded == 3
    said = [record.message for record in caplog.records if "of the device's memory" in record.message]
    assert said == ["ZO: CUDA graphs hold 50% of the device's memory; further batch shapes run without"]


def spoilt(outputs):
    outputs[0].add_(1.0)


def reading(model, batch):
    losses = squared_errors(model, batch)
    return losses if losses.max() < 1e9 else losses * 0.0


def counting_its_calls(model, batch, calls=[]):  # noqa: B006
    calls.append(1)
    return squared_errors(model, batch) * len(calls)


def test_a_number_of_python_that_changes_later_is_found(toy, cpu_recorder, monkeypatch):
    monkeypatch.setattr(step_graphs, "COMPARED_REPLAYS", frozenset({2, 6}))
    factor = 1.0

    def objective(model, batch):
        return squared_errors(model, batch) * factor

    zo = toy(cpu_recorder(), objective)
    # 3 steps until it is recorded, then 4 replays
    take(zo, 7)
    assert zo.graphs.reason is None
    factor = 2.0
    take(zo, 1)
    assert zo.graphs.reason is None
    before = zo.adapters.arena.master.clone()
    loss = take(zo, 1)
    assert zo.graphs.reason == "a graph of it gave other numbers than the step itself"
    plain = toy(objective=objective)
    plain.step_index = 8
    plain.adapters.arena.master.copy_(before)
    assert torch.equal(take(plain, 1), loss)


class Refusing:
    def record(self, work):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")


CASES = {
    "reads": ({}, reading, "it waits for the device (RuntimeError: called a synchronizing operation: "),
    "differs": ({"spoil": spoilt}, squared_errors, "a graph of it gave other numbers than the step itself"),
    "depends on python": ({}, counting_its_calls, "a graph of it gave other numbers than the step itself"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_recorded_runs_as_before_with_one_reason(toy, cpu_recorder, caplog, case):
    options, objective, reason = CASES[case]
    recorder = cpu_recorder(**options)
    zo = toy(recorder, objective)
    with caplog.at_level(logging.INFO, logger="xgblora"):
        losses = take(zo)
    assert zo.graphs.reason.startswith(reason)
    assert [record.message for record in caplog.records if "not captured" in record.message] == [
        f"ZO: the step is not captured as CUDA graphs: {zo.graphs.reason}"
    ]
    assert len(zo.graphs) == 0
    if objective is not counting_its_calls:
        plain = toy(objective=objective)
        assert torch.equal(losses, take(plain))
        assert torch.equal(zo.adapters.arena.master, plain.adapters.arena.master)


def test_a_recorder_that_fails_leaves_the_step_as_it_is(toy, cpu_recorder):
    recorder = cpu_recorder()
    recorder.record = Refusing().record
    zo, plain = toy(recorder), toy()
    assert torch.equal(take(zo), take(plain))
    assert torch.equal(zo.adapters.arena.master, plain.adapters.arena.master)
    reason = "recording it failed (RuntimeError: operation not permitted when stream is capturing)"
    assert zo.graphs.reason == reason


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ((torch.ones(2),), "the batch is no mapping of tensors but a tuple"),
        ({"x": torch.ones(2), "names": ["a"]}, "names of the batch is a list"),
        ({"x": torch.ones(2), "sizes": ((1, 2), [3])}, "sizes of the batch is a tuple"),
        ({"x": torch.ones(2, device="meta")}, "x of the batch lies on meta"),
        ({"x": torch.eye(2).to_sparse()}, "x of the batch is no dense tensor"),
    ],
)
def test_inputs_that_a_graph_cannot_have(cpu_recorder, inputs, reason):
    graphs = StepGraphs(cpu_recorder(), CPU, list)
    for _ in range(4):
        assert graphs.run("part", lambda given: (given,), inputs) == (inputs,)
    assert graphs.reason == reason


def test_plain_values_of_a_batch_belong_to_its_shape(cpu_recorder):
    recorder = cpu_recorder()
    graphs = StepGraphs(recorder, CPU, list)

    def work(inputs):
        return (inputs["x"] * inputs["factor"],)

    for factor in (2, 3, 2, 3, 2, 3, 2, 3):
        x = torch.randn(3)
        (result,) = graphs.run("part", work, {"x": x, "factor": factor})
        assert torch.equal(result, x * factor)
    assert len(graphs) == recorder.recorded == 2


class FailingLate:
    """Fails when the work has run, and changed its state, already."""

    def record(self, work):
        work()
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("trouble", ["none", "outputs", "state", "late"])
def test_state_is_changed_once_while_it_is_recorded(cpu_recorder, trouble):
    state = torch.zeros(2)
    spoils = {"outputs": spoilt, "state": lambda outputs: state.add_(1.0)}
    recorder = cpu_recorder(spoil=spoils.get(trouble))
    if trouble == "late":
        recorder.record = FailingLate().record
    graphs = StepGraphs(recorder, CPU, list)

    def work(inputs):
        return (state.add_(inputs["x"]) * 1.0,)

    for step in range(1, 7):
        (result,) = graphs.run("part", work, {"x": torch.ones(2)}, (state,))
        assert torch.equal(state, torch.full((2,), float(step)))
        assert torch.equal(result, state)
    assert (graphs.reason is None) == (trouble == "none")


def test_a_nan_is_no_difference(cpu_recorder):
    graphs = StepGraphs(cpu_recorder(), CPU, list)
    for _ in range(4):
        graphs.run("part", lambda inputs: (inputs["x"] / inputs["x"],), {"x": torch.zeros(2)})
    assert graphs.reason is None
    assert len(graphs) == 1
