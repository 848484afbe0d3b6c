"""Why the CUDA extension cannot run."""

import pytest

from xgblora.ops.backends import cuda
from xgblora.ops.backends.cuda import BACKEND
from xgblora.ops.extension import Extension


class Module:
    """An extension whose kernel runs, or raises `error`."""

    def __init__(self, error: str | None = None):
        self.error = error

    def merge_facts(self, rounding, device):
        if self.error:
            raise RuntimeError(self.error)


@pytest.mark.parametrize("error", [None, "cudaErrorNoKernelImageForDevice: no kernel image is available"])
def test_an_obstacle_on_this_gpu(monkeypatch, error):
    monkeypatch.setattr(cuda, "extension", lambda: Extension(Module(error), "built"))
    assert BACKEND.obstacle("cuda") == error
    assert BACKEND.obstacle("cpu") == "it takes no CPU tensors"


def test_an_extension_that_is_not_there_is_an_obstacle(monkeypatch):
    monkeypatch.setattr(cuda, "extension", lambda: Extension(None, "not built: nvcc not found"))
    assert BACKEND.obstacle("cuda") == "not built: nvcc not found"
    assert BACKEND.state() == "extension: not built: nvcc not found"
