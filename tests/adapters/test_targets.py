"""Which layers are adapted: all of the blocks, or those that were named, where an adapter acts there."""

import logging

import pytest
import torch
import transformers
from torch import nn

import xgblora
from xgblora.adapters.targets import ALL_LINEAR
from xgblora.errors import InputError
from xgblora.training import from_flags


class Reader(nn.Module):
    """A model that reads token ids: an embedding, two blocks and a head."""

    def __init__(self, block):
        super().__init__()
        torch.manual_seed(0)
        self.embeddings, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.blocks = nn.ModuleList([block(), block()])

    def get_input_embeddings(self):
        return self.embeddings

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids):
        hidden = self.embeddings(input_ids)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(hidden)


class Mixture(nn.Module):
    """Three experts in a list, a router that gives a number for each, and a layer that nobody calls."""

    def __init__(self):
        super().__init__()
        self.router, self.unused = nn.Linear(8, 3), nn.Linear(8, 8)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(8, 8)) for _ in range(3)])

    def forward(self, x):
        # the last expert is chosen by no token
        return sum(self.router(x)[..., i : i + 1] * self.experts[i](x) for i in range(2))


def test_all_linear_takes_the_linear_layers_of_the_blocks(make_model):
    model = make_model()
    linear = [name for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")]
    adapters = xgblora.attach(model, ALL_LINEAR, alpha=1.0)
    assert list(adapters.layers) == [name for name in linear if "lm_head" not in name]


@pytest.mark.parametrize("targets", [ALL_LINEAR, [ALL_LINEAR], (ALL_LINEAR,)])
def test_routers_heads_and_what_is_never_called_are_left_out_and_idle_experts_are_not(targets):
    adapters = xgblora.attach(Reader(Mixture), targets, alpha=1.0)
    assert list(adapters.layers) == [f"blocks.{block}.experts.{expert}.0" for block in (0, 1) for expert in range(3)]


def test_a_model_that_reads_no_tokens_is_taken_by_its_shape():
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Sequential(nn.Linear(2, 2))]), "head": nn.Linear(2, 2)})
    assert list(xgblora.attach(model, ALL_LINEAR, alpha=1.0).layers) == ["layers.0.0"]
    assert list(xgblora.attach(nn.Sequential(nn.Linear(2, 2)), ALL_LINEAR, alpha=1.0).layers) == ["0"]


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(InputError, match="target_modules=all-linear: no linear layer is called inside the blocks"):
        xgblora.attach(nn.ModuleDict({"first": nn.Conv1d(2, 2, 1)}), ALL_LINEAR, alpha=1.0)


def test_a_weight_that_two_blocks_share_is_left_out_of_all_linear():
    model = Reader(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    model.blocks[1][0].weight = model.blocks[0][0].weight
    assert list(xgblora.attach(model, ALL_LINEAR, alpha=1.0).layers) == ["blocks.0.1", "blocks.1.1"]


def test_a_named_layer_that_is_never_called_is_refused_by_name():
    model = Reader(Mixture)
    with pytest.raises(InputError, match=r"target_modules: blocks\.0\.unused is never called where .* 1 more of the"):
        xgblora.attach(model, ["unused"], alpha=1.0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_flag_takes_all_linear():
    assert from_flags._targets([ALL_LINEAR]) == ALL_LINEAR


def test_the_log_names_the_layers_by_kind(make_opt, caplog):
    with caplog.at_level(logging.INFO, logger="xgblora"):
        xgblora.attach(make_opt(), ALL_LINEAR, alpha=1.0)
    assert "12 layers (fc1 2, fc2 2, k_proj 2, out_proj 2, q_proj 2, v_proj 2)" in caplog.messages[0]


# what a small configuration of these needs beside the sizes
SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}


def from_config(kind, **settings):
    """A model of that type in transformers, with 2 layers of width 32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(transformers.CONFIG_MAPPING[kind](**settings)).eval()


def small_bart_decoder():
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in BART.items()}
    return from_config("bart", vocab_size=97, d_model=32, is_decoder=True, is_encoder_decoder=False, **sizes)


BART = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}


def test_attention_to_an_encoder_that_is_not_there_is_left_out_and_refused_by_name():
    layers = xgblora.attach(small_bart_decoder(), alpha=1.0).layers
    assert list(layers) == [
        f"model.decoder.layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("v_proj", "q_proj")
    ]
    with pytest.raises(InputError, match=r"layers\.0\.encoder_attn\.v_proj is never called .* 3 more of the layers"):
        xgblora.attach(small_bart_decoder(), ["q_proj", "v_proj"], alpha=1.0)


def test_a_vision_tower_is_left_out():
    text = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = from_config("gemma3", text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14})
    layers = list(xgblora.attach(model, alpha=1.0).layers)
    assert len(layers) == 4
    assert all("language_model" in name for name in layers)


def test_a_weight_that_is_read_without_a_call_is_left_out_and_refused_by_name():
    def mamba():
        return from_config("mamba", **{key: SIZES[key] for key in SIZES if key != "intermediate_size"}, state_size=4)

    layers = xgblora.attach(mamba(), ALL_LINEAR, alpha=1.0).layers
    assert {name.rpartition(".")[2] for name in layers} == {"in_proj", "x_proj", "out_proj"}
    with pytest.raises(InputError, match=r"target_modules: .*dt_proj is never called"):
        xgblora.attach(mamba(), ["dt_proj"], alpha=1.0)


def test_a_router_that_gives_a_pair_is_refused_by_name():
    def mixture():
        sizes = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2}
        return from_config("phimoe", **sizes, num_local_experts=4)

    with pytest.raises(InputError, match=r"target_modules: .*router gives a tuple, not its product alone"):
        xgblora.attach(mixture(), ".*proj|.*router", alpha=1.0)
    layers = xgblora.attach(mixture(), ALL_LINEAR, alpha=1.0).layers
    experts = {"gate_up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in layers} == {"q_proj", "k_proj", "v_proj", "o_proj"} | experts


def test_layers_that_no_gradient_comes_back_to_are_tried():
    settings = {"attn_layers": ["local", "lsh"], "axial_pos_shape": [4, 4], "axial_pos_embds_dim": [16, 16]}
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_attention_heads": 4, "attention_head_size": 8}
    model = from_config("reformer", is_decoder=True, **sizes, **settings)
    assert len(xgblora.attach(model, alpha=1.0).layers) == 3
