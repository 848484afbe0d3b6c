"""`xgblora-env`: versions and the choice of implementation."""

import pytest

from xgblora import ops
from xgblora.cli import env


@pytest.fixture(autouse=True)
def fresh_choices():
    """The choice of implementation is made once a process; here it is made anew for each test."""
    ops.choose.cache_clear()
    yield
    ops.choose.cache_clear()


def test_it_prints_versions_every_operation_and_the_variables(capsys, monkeypatch):
    monkeypatch.setenv("XGBLORA_STRICT", "0")
    env.main()
    lines = capsys.readouterr().out.splitlines()
    for package in ("xgblora", "python", "torch", "triton", "transformers", "datasets"):
        assert sum(line.startswith(f"{package} ") for line in lines) == 1
    for operation in ops.operations():
        assert any(line.startswith(f"{operation} on cpu: ") for line in lines)
    assert len(ops.operations()) >= 4
    assert "XGBLORA_STRICT=0" in lines
    assert sum(line.startswith("cpu: ") for line in lines) == 1


def test_a_backend_that_is_not_known_ends_with_one_line(capsys, monkeypatch):
    monkeypatch.setenv("XGBLORA_BACKEND", "abacus")
    with pytest.raises(SystemExit) as exit:
        env.main()
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "XGBLORA_BACKEND=abacus" in line


def test_a_package_that_is_missing_is_said_to_be(monkeypatch):
    monkeypatch.setattr("xgblora.environment.PACKAGES", ("torch", "no-such-package"))
    assert "no-such-package not installed" in env.report()
