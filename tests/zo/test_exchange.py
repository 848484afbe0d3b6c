"""Several processes make the steps of one: over gloo, and the arithmetic of what they share."""

import os

import pytest
import torch
import torch.distributed as dist

import xgblora
from tests.zo.toys import Toy, squared_errors, toy_batch
from xgblora.errors import InputError
from xgblora.process_group import ProcessGroup, join
from xgblora.zo import OneSided, TwoSided
from xgblora.zo.exchange import Alone, ShareOfExamples, ShareOfForwards, by_directions, by_signs, mean_in_order

# each of the four merges ends a round of 50 steps
STEPS, ROUND = 200, 50
CASES = [(2, "examples", 1), (2, "directions", 2), (2, "signs", 1), (4, "examples", 1), (4, "directions", 4)]
WHOLE = bool(os.environ.get("XGBLORA_PROCESSES"))


def trained(exchange, optimizer, directions, batches):
    """(projected gradients [T, q], arena, weights) of 200 steps of a toy with 4 merges on `batches(step)`."""
    adapters = xgblora.attach(Toy(), "all-linear", alpha=2.0, seed=5)
    zo = xgblora.ZeroOrder(
        adapters,
        squared_errors,
        eps=1e-2,
        lr=1e-3,
        optimizer=optimizer,
        directions=directions,
        pairing="sequential",
        seed=7,
        exchange=exchange,
    )
    booster, projected = xgblora.Booster(adapters), []
    for step in range(STEPS):
        projected.append(zo.step(batches(step)).projected_grad)
        if (step + 1) % ROUND == 0:
            booster.merge(step=step + 1)
    weights = torch.cat([weight.flatten() for weight in adapters.weights()])
    return torch.stack(projected), adapters.arena.master.clone(), weights


def part(batch, process, processes):
    size = len(batch["y"]) // processes
    return {name: value[process * size : (process + 1) * size] for name, value in batch.items()}


def batch_of(processes):
    return lambda step: toy_batch(4 * processes, seed=step)


def of_kind(kind, group):
    if kind == "examples":
        return ShareOfExamples(group.gather)
    owners = by_directions(group.processes) if kind == "directions" else by_signs(group.processes)
    return ShareOfForwards(group.gather, group.process, owners)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("processes", "kind", "directions"), CASES if WHOLE else [CASES[1], CASES[2], CASES[3]])
def test_processes_make_the_steps_of_one_with_their_batches_together(
    start_processes, processes, kind, directions, optimizer
):
    whole = batch_of(processes)

    def work(process):
        join()
        group = ProcessGroup(process, processes, "cpu", timeout=60.0)
        own = (lambda step: part(whole(step), process, processes)) if kind == "examples" else whole
        result = trained(of_kind(kind, group), optimizer, directions, own)
        dist.barrier()
        return (*result, group.bytes_sent)

    ended = start_processes(processes, work).ended()
    assert [one.status for one in ended] == [0] * processes, ended
    first, *others = [one.value for one in ended]
    for other in others:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(first[:3], other[:3], strict=True))
    projected, arena, weights = trained(None, optimizer, directions, whole)
    if kind == "examples":
        # the first step from the same adapters: one rounding of the two losses apart, over 2 eps
        assert torch.allclose(first[0][0], projected[0], rtol=0.0, atol=4 * 2.0**-23 / 2e-2)
        # later ones from adapters that rounding has parted
        assert torch.allclose(first[0], projected, rtol=1e-2, atol=1e-3)
        assert torch.allclose(first[2], weights, rtol=1e-4, atol=1e-5)
    else:
        assert all(
            torch.equal(ours, theirs) for ours, theirs in zip(first[:3], (projected, arena, weights), strict=True)
        )
    # 2 q numbers of 4 bytes a step, to each of the others
    sent = first[3] / STEPS * (processes - 1)
    assert sent == 8 * directions * (processes - 1)
    assert directions > 1 or sent <= 64


class TestWhoRunsWhat:
    """The rows that each process measures."""

    @pytest.mark.parametrize(
        ("owners", "estimator", "rows"),
        [
            (by_directions(2), TwoSided(2), [[0, 1], [2, 3]]),
            (by_directions(2), TwoSided(3), [[0, 1, 2], [3, 4, 5]]),
            (by_directions(2), OneSided(2), [[0, 1], [2]]),
            (by_signs(2), TwoSided(2), [[0, 2], [1, 3]]),
        ],
    )
    def test_all_rows_are_someones_once(self, owners, estimator, rows):
        assert [ShareOfForwards(None, process, owners).rows(estimator) for process in range(2)] == rows

    def test_one_alone_and_each_with_its_examples_measure_all(self):
        for exchange in (Alone(), ShareOfExamples(None)):
            assert list(exchange.rows(TwoSided(2))) == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("owners", "estimator", "line"),
        [
            (by_directions(3), TwoSided(2), "3 processes need as many directions or more, not zo_directions=2"),
            (by_signs(3), TwoSided(1), "is for 2 processes, one a sign, not 3"),
            (by_signs(2), OneSided(2), "needs both signs of every direction"),
        ],
    )
    def test_what_cannot_be_shared_is_refused(self, owners, estimator, line):
        with pytest.raises(InputError, match=line):
            owners(estimator)


def test_a_mean_is_summed_in_the_order_of_the_processes():
    gathered = torch.tensor([[1.0], [2.0**-24], [2.0**-24], [0.0]])
    assert mean_in_order(gathered).item() == 0.25
    assert mean_in_order(gathered.flip(0)).item() == 0.25 * (1.0 + 2.0**-23)
