"""A stacked forward that does not fit: the step is taken one forward after the other, and nothing else changes."""

import logging

import pytest
import torch

import xgblora

ERRORS = {
    "on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "on a CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    "in Python": MemoryError(),
}


def trained(make_toy, fits, error, pairing="auto", directions=2, steps=3):
    """The results of a few steps on an objective that raises `error` for more rows than `fits`; and the steps."""
    calls = []

    def objective(model, batch):
        calls.append(len(batch["x"]))
        if len(batch["x"]) > fits:
            raise error
        return model(batch["x"])

    adapters = xgblora.attach(make_toy(), ["first", "second"], alpha=2.0, seed=1)
    zo = xgblora.ZeroOrder(adapters, objective, eps=1e-2, lr=0.1, pairing=pairing, directions=directions, seed=2)
    generator = torch.Generator().manual_seed(0)
    results = [zo.step({"x": torch.randn(4, 5, generator=generator)}) for _ in range(steps)]
    return zo, results, calls


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("pairing", ["auto", "paired"])
def test_it_runs_one_after_the_other_from_then_on(make_toy, caplog, error, pairing):
    with caplog.at_level(logging.INFO, logger="xgblora"):
        zo, results, calls = trained(make_toy, 4, error, pairing)
    plain, expected, plain_calls = trained(make_toy, 4, error, "sequential")
    # tried once
    assert calls == [16, *plain_calls]
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours.projected_grad, theirs.projected_grad)
        assert torch.equal(ours.loss, theirs.loss)
    assert torch.equal(zo.adapters.arena.master, plain.adapters.arena.master)
    said = "ZO: signs and directions run one after the other (out of memory when stacked)"
    assert [record.getMessage() for record in caplog.records].count(said) == 1


@pytest.mark.parametrize("error", [*ERRORS.values(), RuntimeError("shape mismatch")])
def test_what_does_not_fit_one_after_the_other_either_ends_the_step_and_perturbs_nothing(make_toy, error):
    adapters = xgblora.attach(make_toy(), ["first", "second"], alpha=2.0, seed=1)

    def objective(model, batch):
        raise error

    zo = xgblora.ZeroOrder(adapters, objective, eps=1e-2)
    master = adapters.arena.master.clone()
    with pytest.raises(type(error)):
        zo.step({"x": torch.randn(4, 5)})
    assert torch.equal(adapters.arena.master, master)
    assert torch.equal(adapters.arena.live, master.expand_as(adapters.arena.live))


def test_another_error_is_not_taken_for_it(make_toy):
    with pytest.raises(RuntimeError, match="shape mismatch"):
        trained(make_toy, 4, RuntimeError("shape mismatch"))
