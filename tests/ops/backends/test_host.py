"""Why the host extension cannot run."""

import pytest

from xgblora.ops.backends import host
from xgblora.ops.backends.host import BACKEND
from xgblora.ops.extension import Extension


@pytest.mark.parametrize("module", [None, "the module"])
def test_what_is_not_there_is_an_obstacle(monkeypatch, module):
    monkeypatch.setattr(host, "host_extension", lambda: Extension(module, "not built: reason"))
    assert BACKEND.obstacle("cpu") == (None if module else "not built: reason")
    assert BACKEND.obstacle("cuda") == "it takes CPU tensors only"
    assert BACKEND.state() == "host extension: not built: reason"
