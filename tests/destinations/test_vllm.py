"""What vLLM asks of an adapter."""

from dataclasses import replace

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from xgblora.destinations import DESTINATIONS
from xgblora.destinations.vllm import about_rank, setting_for
from xgblora.errors import InputError

VLLM = DESTINATIONS["vllm"]


@pytest.mark.parametrize(
    ("rank", "setting"),
    [(1, 1), (2, 8), (16, 16), (17, 32), (24, 32), (33, 64), (257, 320), (321, 512), (512, 512), (513, None)],
)
def test_the_smallest_setting_that_takes_a_rank(rank, setting):
    assert setting_for(rank) == setting


def test_the_setting_is_said():
    assert about_rank(16).endswith("as it is (--max-lora-rank is 16 where it is not given)")
    assert about_rank(24) == "rank 24: vLLM takes it with --max-lora-rank 32"
    assert about_rank(600).endswith("more than vLLM takes (512); --rank 512 writes the nearest that it takes")


def test_each_rule_is_a_line(adapter_of):
    adapter = adapter_of(OPTForCausalLM, OPTConfig(num_hidden_layers=2), rank=24)
    rank, model, layers = VLLM.check(adapter)
    assert rank == "vllm: rank 24 of 32 that --enable-lora --max-lora-rank 32 has room for"
    assert model == "vllm: takes adapters for OPTForCausalLM"
    assert "2 here" in layers
    assert "is not here" in VLLM.check(replace(adapter, skeleton=None))[1]


@pytest.mark.parametrize("rank", [1, 2, 16])
def test_where_nothing_is_given_there_is_room_for_16(adapter_of, rank):
    adapter = adapter_of(OPTForCausalLM, OPTConfig(num_hidden_layers=1), rank=rank)
    assert VLLM.check(adapter)[0] == f"vllm: rank {rank} of 16 that --enable-lora has room for"


def test_a_rank_that_is_too_large(adapter_of):
    adapter = adapter_of(OPTForCausalLM, OPTConfig(num_hidden_layers=1), rank=513)
    with pytest.raises(
        InputError, match=r"^for=vllm: rank 513 is more than its --max-lora-rank takes, 512; --rank 512$"
    ):
        VLLM.check(adapter)


def test_a_model_for_which_it_takes_none(adapter_of):
    adapter = adapter_of(GPT2LMHeadModel, GPT2Config(n_layer=1), layers=("transformer.h.0.attn.c_attn",))
    with pytest.raises(
        InputError, match=r"^for=vllm: takes no adapter for GPT2LMHeadModel; --format merged goes there$"
    ):
        VLLM.check(adapter)


def test_output_embeddings_of_some_models_alone(adapter_of):
    untied = {"num_hidden_layers": 1, "tie_word_embeddings": False}
    VLLM.check(adapter_of(LlamaForCausalLM, LlamaConfig(**untied), layers=("lm_head",)))
    with pytest.raises(InputError, match=r"adapts no output embeddings of OPTForCausalLM \(lm_head\)"):
        VLLM.check(adapter_of(OPTForCausalLM, OPTConfig(**untied), layers=("lm_head",)))


def test_the_steps_are_those_of_vllm():
    vllm = pytest.importorskip("vllm.config.lora", reason="vLLM is not installed (it needs a torch of its own)")
    from typing import get_args

    assert {setting_for(rank) for rank in range(1, 513)} == set(get_args(vllm.MaxLoRARanks))
