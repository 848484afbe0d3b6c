"""The adapter of mlx-lm: its two files, and mlx-lm itself where it is installed."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from xgblora.boosting.truncation import stacked_factors
from xgblora.destinations.mlx_adapter import CONFIG, KNOWN, WEIGHTS, export_mlx
from xgblora.errors import InputError
from xgblora.replaying import rebuild


def test_the_files(boost, make_llama, tmp_path):
    ledger = boost(make_llama(), ["q_proj", "down_proj"], rounds=3)
    assert export_mlx(ledger, tmp_path / "out", base_model=make_llama().to("meta")) is None
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert (config["fine_tune_type"], config["num_layers"]) == ("lora", 2)
    keys = ["mlp.down_proj", "self_attn.q_proj"]
    assert config["lora_parameters"] == {"rank": 3, "scale": 1.0, "dropout": 0.0, "keys": keys}
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    assert len(tensors) == 8
    for name, factors in stacked_factors(ledger).items():
        assert torch.equal(tensors[f"{name}.lora_a"], factors.a.T)
        assert torch.equal(tensors[f"{name}.lora_b"], factors.b)


def test_a_smaller_rank(boost, make_llama, tmp_path):
    cost = export_mlx(boost(make_llama(), ["q_proj"], rounds=3), tmp_path / "out", base_model=make_llama(), rank=2)
    assert cost.overall > 0
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["lora_parameters"]["rank"] == 2


def test_what_mlx_lm_does_not_take_is_refused(boost, make_opt, make_llama, tmp_path):
    for make, layers, model, said in (
        (make_opt, ["q_proj"], make_opt(), "of a model of type opt can be taken to mlx-lm"),
        (make_opt, ["q_proj"], None, "configuration is needed"),
        (make_llama, ["lm_head", "q_proj"], make_llama(), "of the blocks alone, and lm_head is in none"),
    ):
        with pytest.raises(InputError, match=rf"^format=mlx: .*{said}"):
            export_mlx(boost(make(), layers), tmp_path / "out", base_model=model)
    assert not (tmp_path / "out").exists()


def tiny(kind):
    """A small random model of a type; deep enough for models whose layers are of several kinds."""
    sizes = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 8, "intermediate_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **heads, **tokens)).float().eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def ropes_of(config):
    """The entries of a configuration of transformers 4.x, which the hub's folders have and mlx-lm reads."""
    parameters = config.rope_parameters
    entries = parameters.get("full_attention", parameters)
    partial = {name: entries[name] for name in ("partial_rotary_factor",) if name in entries}
    return {"rope_theta": entries["rope_theta"], "rope_scaling": None, **partial}


def logits_in_mlx(folder, ids, adapter=None):
    """Logits fp32 [T, V] of mlx-lm on a CPU."""
    import mlx.core as mx
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model, _ = load_model(folder)
    if adapter:
        model = load_adapters(model, adapter)
    model.eval()
    return torch.from_numpy(np.array(model(mx.array(ids.numpy())))[0])


@pytest.mark.parametrize("kind", KNOWN)
def test_mlx_lm_moves_by_what_the_boosters_do(boost, tmp_path, kind):
    pytest.importorskip("mlx_lm", reason="mlx-lm is not installed (.[destinations])")
    base, ids = tiny(kind), torch.arange(4, 30).unsqueeze(0)
    base.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | ropes_of(base.config)))
    ledger = boost(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), ["proj"], std=0.05)
    export_mlx(ledger, tmp_path / "adapter", base_model=base)
    with torch.no_grad():
        before = base(input_ids=ids).logits[0]
        after = (
            rebuild(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), ledger)
            .adapters.model.eval()(input_ids=ids)
            .logits[0]
        )
    theirs_before = logits_in_mlx(tmp_path / "base", ids)
    theirs_after = logits_in_mlx(tmp_path / "base", ids, tmp_path / "adapter")
    assert (theirs_before - before).abs().max() < 2e-3
    assert (theirs_after - after).abs().max() < 2e-3
    assert (after - before).abs().max() > 0.05
