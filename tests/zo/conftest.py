"""Toys of the step, and a `Recorder` for the CPU that behaves as CUDA graphs do.

What PyTorch dispatches during a recording is repeated by a replay: the same operations, with the tensors and the Python
numbers of that time and no Python in between. Outputs land where they landed first.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import xgblora
from tests.zo.toys import Toy, squared_errors, toy_batch
from xgblora.zo.step_graphs import StepGraphs

READ_BACKS = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero"}


class RefusingReads(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.name() in READ_BACKS:
            raise RuntimeError(f"called a synchronizing operation: {function.name()}")
        return function(*arguments, **(options or {}))


class Recording(RefusingReads):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = super().__torch_dispatch__(function, types, arguments, options)
        self.calls.append((function, arguments, options or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for function, arguments, options, result in self.calls:
            for place, value in zip(tree_leaves(result), tree_leaves(function(*arguments, **options)), strict=True):
                # what an operation returns of its arguments, or a view of them, is in place already
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


class CpuRecorder:
    """Counts its recordings; `share` is what `memory_share` says, `spoil` is called on the outputs of each replay."""

    def __init__(self, share=0.0, spoil=None):
        self.share, self.spoil = share, spoil
        self.recorded = self.replayed = self.forgotten = 0

    def record(self, work):
        work()
        with Recording() as recording:
            outputs = work()
        self.recorded += 1

        def replay():
            self.replayed += 1
            recording.replay()
            if self.spoil is not None:
                self.spoil(outputs)

        return replay, outputs

    def forget(self):
        self.forgotten += 1

    def memory_share(self):
        return self.share

    @contextmanager
    def refusing_reads(self):
        with RefusingReads():
            yield


@pytest.fixture
def cpu_recorder():
    """The class `CpuRecorder`."""
    return CpuRecorder


@pytest.fixture
def toy(randomise_adapters):
    """A function `(recorder)` that makes a `ZeroOrder` of a toy and graphs for it."""

    def make(recorder=None, objective=squared_errors):
        adapters = xgblora.attach(Toy(), ["first", "second"], alpha=2.0)
        randomise_adapters(adapters, std=0.5)
        zo = xgblora.ZeroOrder(adapters, objective, eps=1e-2, lr=0.05, seed=1)
        if recorder is not None:
            zo.graphs = StepGraphs(recorder, torch.device("cpu"), zo._tensors)
        return zo

    return make


@pytest.fixture
def batch():
    """A batch of the toy."""
    return toy_batch()


@pytest.fixture
def adapters(randomise_adapters):
    """A toy with adapters that matter."""
    adapters = xgblora.attach(Toy(), ["first", "second"], alpha=2.0)
    randomise_adapters(adapters, std=0.5)
    return adapters


@pytest.fixture
def language_model(make_model, randomise_adapters):
    """A tiny language model with adapters that matter."""
    adapters = xgblora.attach(make_model(), alpha=2.0)
    randomise_adapters(adapters)
    return adapters
