"""What `from_pretrained` of the adapter's own folder asks, and that it then works."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, OPTForCausalLM

import xgblora
from xgblora.boosting.peft_adapter import export_peft
from xgblora.destinations import DESTINATIONS
from xgblora.errors import InputError
from xgblora.replaying import rebuild

TRANSFORMERS = DESTINATIONS["transformers"]


def test_each_rule_is_a_line(adapter_of):
    adapter = adapter_of(OPTForCausalLM, OPTConfig(num_hidden_layers=2))
    base, layers = TRANSFORMERS.check(adapter)
    assert base == "transformers: loads some/model, which is not on this machine, as the base"
    assert layers == "transformers: finds all 2 layers in OPTForCausalLM; any rank"
    assert "is not here" in TRANSFORMERS.check(replace(adapter, skeleton=None))[1]


def test_an_adapter_without_a_base(adapter_of):
    adapter = adapter_of(OPTForCausalLM, OPTConfig(num_hidden_layers=1), base=None)
    with pytest.raises(InputError, match=r"^for=transformers: the adapter would name no base model"):
        TRANSFORMERS.check(adapter)


def test_a_base_without_such_layers(adapter_of):
    adapter = adapter_of(OPTForCausalLM, OPTConfig(num_hidden_layers=1), layers=("model.layers.0.self_attn.q_proj",))
    with pytest.raises(InputError, match=r"OPTForCausalLM has no layer model\.layers\.0\.self_attn\.q_proj; is some/"):
        TRANSFORMERS.check(adapter)


def test_the_folder_is_loaded_by_its_own_name(tiny_model_folder, randomise_adapters, tmp_path):
    pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    adapters = xgblora.attach(base, alpha=2.0)
    booster = xgblora.Booster(adapters)
    randomise_adapters(adapters)
    booster.merge()
    export_peft(booster.ledger, tmp_path / "adapter")
    merged = rebuild(AutoModelForCausalLM.from_pretrained(tiny_model_folder), booster.ledger).adapters.model.eval()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    batch = AutoTokenizer.from_pretrained(tmp_path / "adapter")("a gem", return_tensors="pt")
    with torch.no_grad():
        ours, theirs = (model(input_ids=batch["input_ids"]).logits for model in (loaded, merged))
    assert torch.allclose(ours, theirs, atol=1e-4)
