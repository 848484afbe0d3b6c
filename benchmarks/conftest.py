"""The device and the dtype of the benchmarks, and the results file that they leave."""

import pytest
import torch

from benchmarks import record
from xgblora.freed_memory import keep_freed_memory


def pytest_sessionstart():
    # as xgblora-train does: for the peers too
    keep_freed_memory()


def pytest_sessionfinish(session):
    for path in record.write():
        session.config.pluginmanager.get_plugin("terminalreporter").write_line(f"\nresults appended to {path}")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def dtype(device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32
