"""What llama.cpp asks of an adapter."""

from dataclasses import replace

import pytest
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from xgblora.destinations import DESTINATIONS, llama_cpp
from xgblora.errors import InputError

LLAMA_CPP = DESTINATIONS["llama.cpp"]
gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")


def test_each_rule_is_a_line(adapter_of):
    model, layers = LLAMA_CPP.check(adapter_of(LlamaForCausalLM, LlamaConfig(num_hidden_layers=2)))
    assert model == ("llama.cpp: has LlamaForCausalLM as llama; the rows of q_proj and k_proj are reordered there")
    assert "all 2 layers, model.layers.0.self_attn.q_proj as blk.0.attn_q.weight; any rank" in layers
    model, _ = LLAMA_CPP.check(adapter_of(Qwen2ForCausalLM, Qwen2Config(num_hidden_layers=1)))
    assert model == "llama.cpp: has Qwen2ForCausalLM as qwen2"


def test_a_model_that_it_does_not_have(adapter_of):
    adapter = adapter_of(OPTForCausalLM, OPTConfig(num_hidden_layers=1))
    with pytest.raises(
        InputError, match=r"^for=llama.cpp: no adapter of a model of type opt can be taken to llama.cpp"
    ):
        LLAMA_CPP.check(adapter)
    with pytest.raises(InputError, match=r"^for=llama.cpp: the base's configuration is needed"):
        LLAMA_CPP.check(replace(adapter, skeleton=None))


def test_a_model_whose_adapters_its_converter_gets_wrong(adapter_of):
    adapter = adapter_of(GPT2LMHeadModel, GPT2Config(n_layer=1), layers=("transformer.h.0.attn.c_attn",))
    with pytest.raises(InputError, match=r"transposes adapters of GPT2LMHeadModel; --format gguf does not$"):
        LLAMA_CPP.check(adapter)


def test_a_layer_that_it_does_not_have(adapter_of):
    adapter = adapter_of(LlamaForCausalLM, LlamaConfig(num_hidden_layers=1), layers=("model.layers.0.extra",))
    with pytest.raises(InputError, match=r"llama.cpp has no layer model\.layers\.0\.extra in its llama$"):
        LLAMA_CPP.check(adapter)


def test_all_its_architectures_are_known_to_gguf():
    assert {form.architecture for form in llama_cpp.FORMS.values()} <= set(gguf.MODEL_ARCH_NAMES.values())


def test_without_the_package_its_name_is_said(adapter_of, monkeypatch):
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'needs the package gguf \(pip install "xgblora\[destinations\]"\)'):
        LLAMA_CPP.check(adapter_of(LlamaForCausalLM, LlamaConfig(num_hidden_layers=1)))
