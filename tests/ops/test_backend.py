import logging

import pytest

from xgblora import ops
from xgblora.errors import InputError
from xgblora.ops import backend

OPERATIONS = {"rank1_linear", "rank1_linear_backward", "perturb", "update_", "merge_rank1_"}


@pytest.fixture(autouse=True)
def fresh_choices(monkeypatch):
    for name in ("XGBLORA_BACKEND", "XGBLORA_STRICT", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    ops.choose.cache_clear()
    yield
    ops.choose.cache_clear()


def test_all_operations_are_registered():
    assert set(ops.operations()) >= OPERATIONS


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
@pytest.mark.parametrize("wanted", ["auto", "eager", "EAGER"])
def test_cpu_tensors_run_the_eager_reference(monkeypatch, operation, wanted):
    monkeypatch.setenv("XGBLORA_BACKEND", wanted)
    choice = ops.choose(operation, "cpu")
    assert (choice.operation, choice.device_type, choice.backend) == (operation, "cpu", "eager")
    assert choice.reason


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
    choice = ops.choose("perturb", "cpu")
    assert choice.backend == "eager"
    assert "TRITON_INTERPRET" in choice.reason


def test_strict_makes_the_fallback_an_error(monkeypatch):
    monkeypatch.setenv("XGBLORA_BACKEND", "triton")
    monkeypatch.setenv("XGBLORA_STRICT", "1")
    with pytest.raises(InputError, match=r"^XGBLORA_STRICT=1: perturb on cpu .*TRITON_INTERPRET"):
        ops.choose("perturb", "cpu")


def test_strict_does_not_refuse_eager_on_the_cpu(monkeypatch):
    monkeypatch.setenv("XGBLORA_STRICT", "1")
    assert ops.choose("perturb", "cpu").backend == "eager"


@pytest.mark.parametrize("strict", [False, True])
def test_missing_kernels_on_cuda_warn_or_fail(monkeypatch, caplog, strict):
    monkeypatch.setattr(backend, "_triton_kernel", lambda *_: (None, "no module named triton"))
    if strict:
        monkeypatch.setenv("XGBLORA_STRICT", "1")
        with pytest.raises(InputError, match="no module named triton"):
            ops.choose("perturb", "cuda")
        return
    with caplog.at_level(logging.DEBUG, logger="xgblora"):
        assert ops.choose("perturb", "cuda").backend == "eager"
        ops.choose("perturb", "cuda")
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1, "logged once, with its reason"
    assert "no module named triton" in warnings[0].getMessage()


def test_the_choice_is_made_once(monkeypatch):
    before = ops.choose("perturb", "cpu")
    monkeypatch.setenv("XGBLORA_BACKEND", "no such backend")
    assert ops.choose("perturb", "cpu") is before
