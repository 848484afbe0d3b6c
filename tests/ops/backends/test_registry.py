"""Backends of other packages: a toy that is found, chosen, checked and shown; and those that cannot be used."""

import logging
import sys

import pytest
import torch

from xgblora import ops
from xgblora.cli import env
from xgblora.errors import InputError
from xgblora.ops.backends.registry import BUILT_IN, registry
from xgblora.ops.self_check import Check, check_backends

BACKEND = """
    from xgblora.ops.backends import Backend
    from xgblora.ops.eager import eager

    calls = []

    def row_dots(*arguments):
        calls.append("row_dots")
        return eager("row_dots")(*arguments)

    def perturb(*arguments):
        calls.append("perturb")
        return eager("perturb")(*arguments)

    BACKEND = Backend(
        name="abacus",
        title="the abacus",
        device_types=("cpu",),
        modules={"row_dots": __name__, "perturb": __name__},
        obstacle=lambda device_type: None if device_type == "cpu" else "its beads are of wood",
        state=lambda: "abacus: ten wires",
        variables=("ABACUS_WIRES",),
    )
"""


@pytest.fixture(autouse=True)
def fresh_registry(monkeypatch):
    """Entry points are read once a process and a choice is made once; here anew for each test. No interpreter: slow."""
    for name in ("XGBLORA_BACKEND", "XGBLORA_STRICT", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    forget()
    yield
    forget()


def forget():
    registry.cache_clear()
    ops.choose.cache_clear()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that puts a package with an entry point on the path, as pip would; gives its module's name."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(name: str, source: str, leads_to: str = "BACKEND") -> str:
        module = f"{name}_for_xgblora"
        lines = [line.removeprefix("    ") for line in source.splitlines()]
        (tmp_path / f"{module}.py").write_text("\n".join(lines) + "\n")
        metadata = tmp_path / f"{name}-1.2.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (metadata / "entry_points.txt").write_text(f"[xgblora.backends]\n{name} = {module}:{leads_to}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)
        return module

    return put


def checks_of(backend: str) -> list[Check]:
    found = [one for checked in check_backends(torch.device("cpu")) for one in checked.checks]
    return [one for one in found if one.backend == backend]


def test_ours_come_first():
    assert list(registry().backends.values()) == list(BUILT_IN)
    assert not registry().refused


class TestAToy:
    """A backend of another package."""

    def test_it_runs_by_itself_what_none_of_ours_runs(self, install):
        module = install("abacus", BACKEND)
        choice = ops.choose("row_dots", "cpu")
        assert (choice.backend, choice.reason) == ("abacus", "CPU tensors run the abacus")
        x, a = torch.randn(6, 5), torch.randn(2, 5)
        assert torch.equal(ops.row_dots(x, [a])[0], (x.view(2, 3, 5) @ a.unsqueeze(2)).flatten())
        assert sys.modules[module].calls == ["row_dots"]
        if not registry().backends["host"].obstacle("cpu"):
            assert ops.choose("perturb", "cpu").backend == "host", "ours come first"

    def test_it_is_asked_for_by_name(self, install, monkeypatch):
        module = install("abacus", BACKEND)
        monkeypatch.setenv("XGBLORA_BACKEND", "abacus")
        monkeypatch.setenv("XGBLORA_STRICT", "1")
        assert ops.choose("perturb", "cpu").reason == "XGBLORA_BACKEND=abacus"
        master, live = torch.ones(8), torch.empty(1, 8)
        ops.perturb(master, live, 0, 0.0, torch.ones(1))
        assert torch.equal(live[0], master)
        assert sys.modules[module].calls == ["perturb"]
        with pytest.raises(InputError, match=r"perturb on cuda cannot run the abacus: its beads are of wood$"):
            ops.choose("perturb", "cuda")

    def test_it_is_checked(self, install):
        install("abacus", BACKEND)
        checks = checks_of("abacus")
        assert {one.operation for one in checks} == {"row_dots", "perturb"}
        assert all(one.passed for one in checks)

    def test_a_wrong_one_fails_its_check(self, install):
        returns = 'return eager("row_dots")(*arguments)'
        install("abacus", BACKEND.replace(returns, f"{returns} + 1"))
        assert {one.operation for one in checks_of("abacus") if not one.passed} == {"row_dots"}

    def test_it_is_shown(self, install, monkeypatch, capsys):
        install("abacus", BACKEND)
        monkeypatch.setenv("ABACUS_WIRES", "10")
        env.main(["--check"])
        lines = capsys.readouterr().out.splitlines()
        assert "backends: cuda, triton, host, abacus (abacus 1.2)" in lines
        assert "abacus: ten wires" in lines
        assert "row_dots on cpu: abacus (CPU tensors run the abacus)" in lines
        assert "ABACUS_WIRES=10" in lines
        for operation in ("row_dots", "perturb"):
            assert sum(line.startswith(f"check {operation}, abacus on cpu: ok (") for line in lines) == 1

    @pytest.mark.parametrize(
        ("state", "said"),
        [
            ("lambda: 1 / 0", "abacus: its state cannot be told: division by zero"),
            ("lambda: None", "abacus: its state is None, no line"),
        ],
    )
    def test_one_that_cannot_tell_its_state_takes_nothing_down(self, install, state, said):
        install("abacus", BACKEND.replace('lambda: "abacus: ten wires"', state))
        assert said in env.backends()

    @pytest.mark.parametrize(
        ("body", "detail"), [("raise OSError('no beads')", "OSError: no beads"), ("return arguments[0]", "shape (")]
    )
    def test_what_an_operation_raises_fails_its_check_alone(self, install, body, detail):
        source = BACKEND.replace("def row_dots(*arguments):\n", f"def row_dots(*arguments):\n        {body}\n")
        assert source != BACKEND
        install("abacus", source)
        checks = checks_of("abacus")
        failed = [check for check in checks if not check.passed]
        assert {check.operation for check in failed} == {"row_dots"} and failed[0].detail.startswith(detail)
        assert any(check.operation == "perturb" and check.passed for check in checks)

    def test_what_an_operation_cannot_import_is_an_obstacle(self, install, caplog):
        install("abacus", BACKEND.replace('"row_dots": __name__', '"row_dots": "no_such_module"'))
        choice = ops.choose("row_dots", "cpu")
        assert choice.backend == "eager"
        assert choice.reason == "the abacus cannot be used: No module named 'no_such_module'"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("    import no_such_library\n", "No module named 'no_such_library'"),
        ("    raise OSError('libbeads.so: cannot\\nopen')\n", "libbeads.so: cannot open"),
        ("    OTHER = 1\n", "module 'broken_for_xgblora' has no attribute 'BACKEND'"),
        (BACKEND.replace('("cpu",)', '("npu",)'), "device_types=('npu',): must be of cpu, cuda"),
        ("    BACKEND = 'wood'\n", "leads to a str, must be an xgblora.ops.backends.Backend"),
        (
            BACKEND.replace('"abacus"', '"host"'),
            "name=host: must be in lower case and none of auto, eager, cuda, triton, host",
        ),
        (BACKEND.replace('"abacus"', '"Abacus"'), "name=Abacus: must be in lower case"),
        (BACKEND.replace('"perturb": ', '"perturbb": '), "modules of perturbb: must be of "),
    ],
    ids=["no library", "another error", "no name", "no device", "no backend", "taken", "capital", "no operation"],
)
def test_one_that_cannot_be_used_is_one_line_and_takes_no_other_down(
    install, caplog, capsys, monkeypatch, source, reason
):
    install("broken", source)
    install("zither", BACKEND.replace('"abacus"', '"zither"'))
    with caplog.at_level(logging.WARNING, logger="xgblora"):
        assert list(registry().backends) == ["cuda", "triton", "host", "zither"]
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith(f"backend broken of broken 1.2: {reason}")
    assert "\n" not in line
    env.main([])
    assert line in capsys.readouterr().out.splitlines()
    assert ops.choose("row_dots", "cpu").backend == "zither"
    ops.choose.cache_clear()
    monkeypatch.setenv("XGBLORA_BACKEND", "broken")
    with pytest.raises(
        InputError, match=r"must be one of auto, eager, cuda, triton, host, zither; broken of broken 1\.2: "
    ):
        ops.choose("row_dots", "cpu")


def test_a_broken_one_by_the_name_of_ours_does_not_hide_it(install, monkeypatch):
    install("triton", "    import no_such_library\n")
    monkeypatch.setenv("XGBLORA_BACKEND", "triton")
    assert list(registry().refused) == ["triton"]
    assert list(registry().backends.values()) == list(BUILT_IN)
    assert ops.choose("row_dots", "cpu").reason.startswith("Triton cannot be used: CPU tensors need TRITON_INTERPRET=1")
