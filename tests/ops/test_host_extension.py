"""What a process finds of the host extension, in one line."""

import types

import pytest

from xgblora.ops import host_extension
from xgblora.ops.extension import Extension

BUILT = {"built": True, "reason": "", "compiler": "g++ 12.2.0"}


def test_the_reason_of_the_build_is_kept(monkeypatch):
    monkeypatch.setattr(host_extension.importlib, "import_module", lambda name: pytest.fail("imported"))
    found = host_extension._load({"built": False, "reason": "no C++ compiler"})
    assert found == Extension(None, "not built: no C++ compiler")


def test_an_extension_that_cannot_be_imported(monkeypatch):
    def refuse(name):
        raise ImportError("wrong ELF class")

    monkeypatch.setattr(host_extension.importlib, "import_module", refuse)
    assert host_extension._load(BUILT).state == "built, but cannot be imported: wrong ELF class"


def test_what_it_was_built_with_and_runs(monkeypatch):
    module = types.SimpleNamespace(instruction_sets=lambda: ["AVX2", "baseline"])
    monkeypatch.setattr(host_extension.importlib, "import_module", lambda name: module)
    assert host_extension._load(BUILT) == Extension(module, "built with g++ 12.2.0, runs AVX2 here")
