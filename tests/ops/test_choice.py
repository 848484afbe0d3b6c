"""Which backend runs an operation, and why."""

import logging
import re
import types
from dataclasses import replace

import pytest
import torch

from xgblora import ops
from xgblora.errors import InputError
from xgblora.ops import choice as choices
from xgblora.ops.backends import backend
from xgblora.ops.backends.registry import BUILT_IN, Registry

OPERATIONS = {"row_dots", "rank1_linear", "rank1_linear_backward", "perturb", "update_", "merge_rank1_", "merge_noise_"}


@pytest.fixture(autouse=True)
def fresh_choices(monkeypatch):
    for name in ("XGBLORA_BACKEND", "XGBLORA_STRICT", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    ops.choose.cache_clear()
    yield
    ops.choose.cache_clear()


@pytest.fixture
def backends(monkeypatch):
    """A function that gives the backends other attributes, by their names, in this test."""

    def become(**attributes: dict) -> None:
        changed = {one.name: replace(one, **attributes.get(one.name, {})) for one in BUILT_IN}
        monkeypatch.setattr(choices, "registry", lambda: Registry(changed))

    return become


@pytest.fixture
def obstacles(monkeypatch, backends):
    """A function that says what stands in the way of each backend, and puts functions in place of the modules."""

    def there_are(**found: str | None) -> None:
        backends(**{name: {"obstacle": lambda _, why=why: why} for name, why in found.items()})
        functions = types.SimpleNamespace(perturb=lambda: "perturb", merge_rank1_=lambda: "merge")
        monkeypatch.setattr(backend, "import_module", lambda name: functions)

    return there_are


def test_all_operations_are_registered():
    assert set(ops.operations()) >= OPERATIONS


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
@pytest.mark.parametrize("wanted", ["eager", "EAGER"])
def test_cpu_tensors_run_the_eager_reference_where_it_is_wanted(monkeypatch, operation, wanted):
    monkeypatch.setenv("XGBLORA_BACKEND", wanted)
    choice = ops.choose(operation, "cpu")
    assert (choice.operation, choice.device_type, choice.backend) == (operation, "cpu", "eager")
    assert choice.reason == "XGBLORA_BACKEND=eager"


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
@pytest.mark.parametrize("wanted", ["auto", "host"])
@pytest.mark.parametrize("missing", [None, "not built: no C++ compiler"])
def test_cpu_tensors_run_the_host_extension_where_it_is_written_and_built(
    backends, monkeypatch, operation, wanted, missing
):
    monkeypatch.setenv("XGBLORA_BACKEND", wanted)
    backends(host={"obstacle": lambda device_type: missing})
    choice = ops.choose(operation, "cpu")
    if operation in ("perturb", "update_", "merge_rank1_", "merge_noise_"):
        assert choice.backend == ("eager" if missing else "host")
        assert (missing or "") in choice.reason
    else:
        assert choice.backend == "eager"
        assert choice.reason.endswith("CPU tensors run the eager reference")


def test_a_missing_host_extension_is_no_warning_and_under_strict_an_error(monkeypatch, caplog, backends):
    backends(host={"obstacle": lambda device_type: "not built: no C++ compiler"})
    with caplog.at_level(logging.INFO, logger="xgblora"):
        assert ops.choose("perturb", "cpu").reason == "the host extension cannot be used: not built: no C++ compiler"
    assert not caplog.records
    ops.choose.cache_clear()
    monkeypatch.setenv("XGBLORA_STRICT", "1")
    with pytest.raises(
        InputError,
        match=r"^XGBLORA_STRICT=1: perturb on cpu cannot run the host extension: not built: no C\+\+ compiler$",
    ):
        ops.choose("perturb", "cpu")


def test_the_host_extension_takes_no_cuda_tensors(monkeypatch, obstacles):
    monkeypatch.setenv("XGBLORA_BACKEND", "host")
    obstacles(triton=None, cuda=None)
    choice = ops.choose("perturb", "cuda")
    assert choice.backend == "triton"
    assert choice.reason == "the host extension cannot be used: it takes CPU tensors only; XGBLORA_BACKEND=host"


def test_eager_can_be_forced_on_cuda(monkeypatch):
    monkeypatch.setenv("XGBLORA_BACKEND", "eager")
    monkeypatch.setenv("XGBLORA_STRICT", "1")
    assert ops.choose("perturb", "cuda").backend == "eager", "what is asked for is no fallback"


def test_a_bad_backend_is_refused_and_the_choices_are_named(monkeypatch):
    monkeypatch.setenv("XGBLORA_BACKEND", "trition")
    with pytest.raises(InputError, match=r"^XGBLORA_BACKEND=trition: must be one of .*eager.*$"):
        ops.choose("perturb", "cpu")


def test_triton_that_cannot_run_falls_back_and_says_why(monkeypatch):
    monkeypatch.setenv("XGBLORA_BACKEND", "triton")
    choice = ops.choose("rank1_linear", "cpu")
    assert choice.backend == "eager"
    assert "TRITON_INTERPRET" in choice.reason


def test_strict_makes_the_fallback_an_error(monkeypatch):
    monkeypatch.setenv("XGBLORA_BACKEND", "triton")
    monkeypatch.setenv("XGBLORA_STRICT", "1")
    with pytest.raises(InputError, match=r"^XGBLORA_STRICT=1: perturb on cpu .*TRITON_INTERPRET"):
        ops.choose("perturb", "cpu")


def test_strict_does_not_refuse_eager_on_the_cpu(monkeypatch):
    monkeypatch.setenv("XGBLORA_STRICT", "1")
    assert ops.choose("rank1_linear", "cpu").backend == "eager"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("operation", "title"), [("perturb", "Triton"), ("merge_rank1_", "the CUDA extension")])
def test_missing_kernels_on_cuda_warn_or_fail(monkeypatch, caplog, obstacles, operation, title, strict):
    obstacles(triton="not there", cuda="not there")
    if strict:
        monkeypatch.setenv("XGBLORA_STRICT", "1")
        with pytest.raises(InputError, match=rf"^XGBLORA_STRICT=1: {operation} on cuda cannot run {title}: not there$"):
            ops.choose(operation, "cuda")
        return
    with caplog.at_level(logging.DEBUG, logger="xgblora"):
        assert ops.choose(operation, "cuda").backend == "eager"
        ops.choose(operation, "cuda")
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1, "logged once, with its reason"
    assert f"{title} cannot be used: not there" in warnings[0].getMessage()


def test_a_module_that_cannot_be_imported_is_an_obstacle(monkeypatch):
    def refuse(name):
        raise ImportError("no module named triton")

    monkeypatch.setattr(backend, "import_module", refuse)
    choice = ops.choose("perturb", "cuda")
    assert (choice.backend, choice.reason) == ("eager", "Triton cannot be used: no module named triton")


@pytest.mark.parametrize("wanted", ["auto", "cuda", "triton"])
@pytest.mark.parametrize("strict", ["0", "1"])
def test_cuda_tensors_run_what_each_operation_is_written_for(monkeypatch, obstacles, wanted, strict):
    # one that is not written for the wanted backend is no fallback, under STRICT either
    monkeypatch.setenv("XGBLORA_BACKEND", wanted)
    monkeypatch.setenv("XGBLORA_STRICT", strict)
    obstacles(triton=None, cuda=None)
    perturb, merge = ops.choose("perturb", "cuda"), ops.choose("merge_rank1_", "cuda")
    assert (perturb.backend, perturb.function()) == ("triton", "perturb")
    assert (merge.backend, merge.function()) == ("triton" if wanted == "triton" else "cuda", "merge")
    reasons = {
        "auto": ("CUDA tensors run Triton", "CUDA tensors run the CUDA extension"),
        "cuda": (
            "XGBLORA_BACKEND=cuda, which it is not written for; CUDA tensors run Triton",
            "XGBLORA_BACKEND=cuda",
        ),
        "triton": ("XGBLORA_BACKEND=triton", "XGBLORA_BACKEND=triton"),
    }
    assert (perturb.reason, merge.reason) == reasons[wanted]


def test_the_next_of_a_chain_is_taken_and_the_first_one_is_named(monkeypatch, obstacles):
    obstacles(triton=None, cuda="not built: nvcc not found")
    choice = ops.choose("merge_rank1_", "cuda")
    assert choice.backend == "triton"
    assert "the CUDA extension cannot be used: not built: nvcc not found" in choice.reason
    ops.choose.cache_clear()
    monkeypatch.setenv("XGBLORA_BACKEND", "triton")
    assert ops.choose("merge_rank1_", "cuda").reason == "XGBLORA_BACKEND=triton", "what is wanted comes first"


@pytest.mark.parametrize("strict", ["0", "1"])
def test_the_extension_takes_no_cpu_tensors(monkeypatch, strict):
    monkeypatch.setenv("XGBLORA_BACKEND", "cuda")
    monkeypatch.setenv("XGBLORA_STRICT", strict)
    assert ops.choose("rank1_linear", "cpu").backend == "eager", "not written for CUDA, so nothing is missing"
    if strict == "1":
        with pytest.raises(InputError, match=r"^XGBLORA_STRICT=1: merge_rank1_ on cpu cannot run the CUDA extension: "):
            ops.choose("merge_rank1_", "cpu")
    else:
        choice = ops.choose("merge_rank1_", "cpu")
        assert choice.backend != "cuda"
        assert "takes no CPU tensors" in choice.reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_the_merge_says_why_it_cannot_run_the_extension():
    choice = ops.choose("merge_rank1_", "cuda")
    assert choice.backend != "cuda"
    # not built, or built and refused by CUDA
    assert re.search(r"the CUDA extension cannot be used: (not built: |built, but |cudaError)", choice.reason)


def test_the_choice_is_made_once(monkeypatch):
    before = ops.choose("perturb", "cpu")
    monkeypatch.setenv("XGBLORA_BACKEND", "no such backend")
    assert ops.choose("perturb", "cpu") is before
