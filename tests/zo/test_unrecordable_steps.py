"""Steps that cannot be recorded, or whose graphs give something else: they run as before, with one reason."""

import logging

import pytest
import torch

from tests.zo.toys import squared_errors, take
from xgblora.zo import step_graphs
from xgblora.zo.step_graphs import StepGraphs

CPU = torch.device("cpu")


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
