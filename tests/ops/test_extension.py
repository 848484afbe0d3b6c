"""What a process finds of the extension, in one line."""

import json

import pytest

from xgblora.ops import extension

BUILT = {"built": True, "reason": "", "nvcc": "13.0", "architectures": [80, 90], "ptx": 90, "seconds": 9.0}


def test_a_source_tree_that_was_never_installed(tmp_path):
    found = extension._load(extension.read_record(tmp_path / "_build.json"))
    assert (found.module, found.state) == (None, "not built: xgblora was not installed with pip")


def test_the_reason_of_the_build_is_kept(tmp_path):
    record = tmp_path / "_build.json"
    record.write_text(json.dumps({"built": False, "reason": "nvcc not found"}))
    assert extension._load(extension.read_record(record)).state == "not built: nvcc not found"


def test_an_extension_that_was_not_built_is_not_imported_even_where_one_lies(monkeypatch):
    monkeypatch.setattr(extension.importlib, "import_module", lambda name: pytest.fail("imported"))
    assert extension._load({"built": False, "reason": "XGBLORA_BUILD_CUDA=0"}).module is None


def test_an_extension_that_cannot_be_imported(monkeypatch):
    def refuse(name):
        raise ImportError("libsomething.so: cannot open shared object file")

    monkeypatch.setattr(extension.importlib, "import_module", refuse)
    found = extension._load(BUILT)
    assert found.module is None
    assert found.state == "built, but cannot be imported: libsomething.so: cannot open shared object file"


def test_what_it_was_built_with(monkeypatch):
    monkeypatch.setattr(extension.importlib, "import_module", lambda name: "the module")
    assert extension._load(BUILT) == extension.Extension("the module", "built with nvcc 13.0 for sm_80, sm_90 + PTX 90")
