"""Why Triton cannot run, and the dots that it reads."""

import pytest
import torch

from xgblora.ops.backends import triton
from xgblora.ops.backends.triton import BACKEND


@pytest.mark.parametrize(
    ("version", "numpy", "works"), [("3.6.0", "2.4.0", False), ("3.6.0", "2.3.5", True), ("3.7.0", "2.5.2", True)]
)
def test_an_interpreter_that_numpy_broke_is_an_obstacle(monkeypatch, version, numpy, works):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton, "installed", {"triton": version, "numpy": numpy}.__getitem__)
    assert (BACKEND.obstacle("cpu") is None) == works
    assert BACKEND.obstacle("cuda") is None


def test_cpu_tensors_need_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert BACKEND.obstacle("cpu") == "CPU tensors need TRITON_INTERPRET=1"


@pytest.mark.parametrize(("rows", "reads"), [(1, False), (16, False), (17, True), (768, True)])
def test_few_rows_make_their_dots_themselves(rows, reads):
    assert BACKEND.reads_dots(torch.zeros(rows, 8), torch.zeros(4, 8)) == reads
