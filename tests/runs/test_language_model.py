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


@pytest.mark.parametrize("saved", [torch.float32, torch.float16])
def test_auto_of_a_quantised_model_is_the_dtype_it_was_saved_in(monkeypatch, tmp_path, make_llama, saved):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    config = make_llama().config
    config.dtype = saved
    config.save_pretrained(tmp_path)
    assert language_model._dtype_to_load(str(tmp_path), "auto", CPU, {}) is torch.bfloat16
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    config.save_pretrained(tmp_path)
    assert language_model._dtype_to_load(str(tmp_path), "auto", CPU, {}) is saved
