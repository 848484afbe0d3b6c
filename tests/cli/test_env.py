"""`xgblora-env`: versions and the choice of implementation."""

import types

import pytest
import torch

from xgblora import ops
from xgblora.cli import env
from xgblora.ops import self_check
from xgblora.ops.eager import eager


@pytest.fixture(autouse=True)
def fresh_choices():
    """The choice of implementation is made once a process; here it is made anew for each test."""
    ops.choose.cache_clear()
    yield
    ops.choose.cache_clear()


def test_it_prints_versions_every_operation_and_the_variables(capsys, monkeypatch):
    monkeypatch.setenv("XGBLORA_STRICT", "0")
    env.main([])
    lines = capsys.readouterr().out.splitlines()
    for package in ("xgblora", "python", "torch", "triton", "transformers", "datasets"):
        assert sum(line.startswith(f"{package} ") for line in lines) == 1
    for operation in ops.operations():
        assert any(line.startswith(f"{operation} on cpu: ") for line in lines)
    assert len(ops.operations()) >= 4
    assert "XGBLORA_STRICT=0" in lines
    assert sum(line.startswith("cpu: ") for line in lines) == 1
    (extension,) = (line for line in lines if line.startswith("extension: "))
    assert extension.startswith(("extension: built", "extension: not built: "))
    (memory,) = (line for line in lines if line.startswith("memory: "))
    assert memory.endswith(" available")


def test_a_backend_that_is_not_known_ends_with_one_line(capsys, monkeypatch):
    monkeypatch.setenv("XGBLORA_BACKEND", "abacus")
    with pytest.raises(SystemExit) as exit:
        env.main([])
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "XGBLORA_BACKEND=abacus" in line


def test_a_package_that_is_missing_is_said_to_be(monkeypatch):
    monkeypatch.setattr("xgblora.environment.PACKAGES", ("torch", "no-such-package"))
    assert "no-such-package not installed" in env.report()


def test_memory_is_what_linux_says(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       33554432 kB\nMemFree:  1 kB\nMemAvailable:   16252928 kB\nHugePages_Total: 0\n")
    assert env.memory(meminfo) == "memory: 32.0 GiB, 15.5 GiB available"
    meminfo.write_text("MemTotal:       33554432 kB\n")
    assert env.memory(meminfo) == "memory: 32.0 GiB, unknown available"


def test_memory_without_meminfo(tmp_path, monkeypatch):
    sizes = {"SC_PHYS_PAGES": 2**22, "SC_PAGE_SIZE": 2**12}
    monkeypatch.setattr(env.os, "sysconf", sizes.__getitem__, raising=False)
    assert env.memory(tmp_path / "none") == "memory: 16.0 GiB, unknown available"
    monkeypatch.delattr(env.os, "sysconf")
    assert env.memory(tmp_path / "none") == "memory: unknown, unknown available"


def test_a_gpu_is_listed_with_its_free_memory(monkeypatch):
    facts = types.SimpleNamespace(name="Some GPU", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (70 * 2**30, 80 * 2**30))
    assert env.devices()[1].startswith("cuda:0: Some GPU, 80.0 GiB, 70.0 GiB free, sm_90, CUDA ")


class TestCheck:
    """`xgblora-env --check`."""

    def test_every_operation_is_checked_and_what_is_not_is_said(self, capsys, monkeypatch):
        # the tests of the kernels run them through their interpreter, which takes half a minute here
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        env.main(["--check"])
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("check ")]
        for operation in ("noise", *ops.operations()):
            assert sum(line.startswith(f"check {operation}, eager on cpu: ok (") for line in lines) == 1
        assert any(line.startswith("check cuda on cpu: not checked, ") for line in lines)
        assert any(
            line.startswith("check triton on cpu: not checked, CPU tensors need TRITON_INTERPRET=1") for line in lines
        )
        assert torch.cuda.is_available() or any("there is no CUDA device" in line for line in lines)

    def test_a_wrong_implementation_fails_with_its_case(self, capsys, monkeypatch):
        wrong = {"perturb": lambda master, live, *others: live.copy_(master)}
        monkeypatch.setattr(self_check, "eager", lambda operation: wrong.get(operation) or eager(operation))
        # the kernels would be compared as well, in many seconds of their interpreter
        monkeypatch.setattr(env, "check_backends", lambda device: [])
        with pytest.raises(SystemExit) as exit:
            env.main(["--check"])
        assert exit.value.code == 1
        (line,) = (line for line in capsys.readouterr().out.splitlines() if "FAILED" in line)
        assert line.startswith("check perturb, eager on cpu: FAILED in 1 of 1 cases, first float32: relative error ")

    def test_an_unknown_flag_is_one_line(self, capsys):
        with pytest.raises(SystemExit) as exit:
            env.main(["--chekc"])
        assert exit.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--chekc" in line
