"""The dtype that "auto" stands for."""

import pytest
import torch

from xgblora.runs import language_model
from xgblora.runs.language_model import resolve_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(("units", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_a_cpu_follows_its_matrix_units(monkeypatch, units, dtype):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units, raising=False)
    assert resolve_dtype("auto", CPU) is dtype


def test_auto_on_a_cpu_without_the_question(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not language_model.has_bf16_matrix_units()


def test_a_named_dtype_is_itself(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert resolve_dtype("float16", CPU) is torch.float16
