"""The adapter of llama.cpp: read back by gguf, and run by llama.cpp itself where it is installed."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from xgblora.boosting.truncation import stacked_factors, truncated
from xgblora.destinations.gguf_adapter import FILE, export_gguf
from xgblora.errors import InputError
from xgblora.replaying import rebuild

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed (.[destinations])")


def read(folder):
    """The entries and the tensors of an adapter, as gguf reads them."""
    reader = gguf.GGUFReader(folder / FILE)
    entries = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return entries, {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}


def test_what_it_says(boost, make_llama, tmp_path):
    ledger = boost(make_llama(), ["self_attn"], rounds=3)
    assert export_gguf(ledger, tmp_path / "out", base_model=make_llama().to("meta")) is None
    entries, tensors = read(tmp_path / "out")
    assert entries == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 3.0,
    }
    parts = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    shapes = {}
    for block in range(2):
        for part, (rows, columns) in parts.items():
            shapes[f"blk.{block}.{part}.weight.lora_a"] = (3, columns)
            shapes[f"blk.{block}.{part}.weight.lora_b"] = (rows, 3)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize(("layer", "name", "heads"), [("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2)])
def test_the_rows_of_q_and_k_are_where_llama_cpp_rotates_them(boost, make_llama, tmp_path, layer, name, heads):
    ledger = boost(make_llama(), [layer])
    export_gguf(ledger, tmp_path / "out", base_model=make_llama())
    _, tensors = read(tmp_path / "out")
    factors = stacked_factors(ledger)[f"model.layers.1.self_attn.{layer}"]
    assert torch.equal(tensors[f"blk.1.{name}.weight.lora_a"], factors.a)
    rows, size = factors.b.T, factors.b.shape[1] // heads
    for head in range(heads):
        for place in range(size):
            # places 2i and 2i + 1 are rows i and i + size / 2 of transformers
            row = head * size + place // 2 + (place % 2) * size // 2
            assert torch.equal(tensors[f"blk.1.{name}.weight.lora_b"][head * size + place], rows[row])


def test_the_rows_of_other_layers_and_models_stay(boost, make_llama, make_gpt2, tmp_path):
    for make, layer, name in (
        (make_llama, "model.layers.0.mlp.down_proj", "blk.0.ffn_down"),
        (make_gpt2, "transformer.h.0.attn.c_attn", "blk.0.attn_qkv"),
    ):
        ledger = boost(make(), [layer])
        export_gguf(ledger, tmp_path / name, base_model=make())
        _, tensors = read(tmp_path / name)
        factors = stacked_factors(ledger)[layer]
        assert torch.equal(tensors[f"{name}.weight.lora_a"], factors.a)
        assert torch.equal(tensors[f"{name}.weight.lora_b"], factors.b.T)


def test_a_smaller_rank(boost, make_llama, tmp_path):
    ledger = boost(make_llama(), ["v_proj"], rounds=4)
    cost = export_gguf(ledger, tmp_path / "out", base_model=make_llama(), rank=2)
    entries, tensors = read(tmp_path / "out")
    assert entries["adapter.lora.alpha"] == 2.0
    factors, known = truncated(stacked_factors(ledger), 2)
    assert cost == known
    assert torch.equal(tensors["blk.0.attn_v.weight.lora_b"], factors["model.layers.0.self_attn.v_proj"].b.T)


def test_a_model_that_llama_cpp_does_not_have_is_refused(boost, make_opt, tmp_path):
    for model, said in ((make_opt(), "of a model of type opt"), (None, "configuration is needed")):
        with pytest.raises(InputError, match=rf"^format=gguf: .*{said}"):
            export_gguf(boost(make_opt(), ["q_proj"]), tmp_path / "out", base_model=model)
    assert not (tmp_path / "out").exists()


def logits_in_llama_cpp(llama_cpp, ids, base, lora=None):
    """Logits fp32 [T, V] of llama.cpp on a CPU, keys and values in fp32 too."""
    settings = {"n_ctx": 64, "n_threads": 1, "logits_all": True, "verbose": False}
    fp32 = llama_cpp.GGML_TYPE_F32
    llama = llama_cpp.Llama(str(base), lora_path=str(lora) if lora else None, type_k=fp32, type_v=fp32, **settings)
    llama.eval(ids)
    return torch.from_numpy(np.array(llama.scores[: len(ids)]))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["self_attn", "mlp"]], ids=["q-v", "all"])
def test_llama_cpp_computes_what_the_merged_model_does(boost, shared_model, tmp_path, targets):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (it is built from source)")
    from tests.destinations.base_gguf import write_llama

    def load():
        return AutoModelForCausalLM.from_pretrained(shared_model("stories260K"), dtype=torch.float32).eval()

    base, ids = load(), list(range(3, 40))
    ledger = boost(load(), targets, std=0.06)
    write_llama(base, tmp_path / "base.gguf")
    export_gguf(ledger, tmp_path / "out", base_model=base)
    with torch.no_grad():
        before, merged = (
            model(input_ids=torch.tensor([ids])).logits[0] for model in (base, rebuild(load(), ledger).adapters.model)
        )
    assert (logits_in_llama_cpp(llama_cpp, ids, tmp_path / "base.gguf") - before).abs().max() < 1e-3
    found = logits_in_llama_cpp(llama_cpp, ids, tmp_path / "base.gguf", tmp_path / "out" / FILE)
    assert (found - merged).abs().max() < 1e-3
    assert (merged - before).abs().max() > 0.5
