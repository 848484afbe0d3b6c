"""Which graphs of a step there are, and what drops them."""

import logging

import pytest
import torch

import xgblora
from tests.zo.toys import Toy, squared_errors, take, toy_batch
from xgblora.errors import InputError
from xgblora.zo import step_graphs
from xgblora.zo.step_graphs import StepGraphs

CPU = torch.device("cpu")


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
