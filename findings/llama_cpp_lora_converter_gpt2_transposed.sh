#!/usr/bin/env bash
# llama.cpp's LoRA converter transposes an adapter of GPT-2.
#
# GPT-2's linear layers (transformers' Conv1D) keep their weight as (in, out). PEFT knows this: lora_A is (rank, in) and
# lora_B is (out, rank), as for any other layer, and the product is transposed when it is merged. The converter takes
# B @ A for a matrix of the weight's own layout and gives it the same transpose as the weight: what it writes is the
# transpose of what the adapter says. Exit status 0, no warning.
#
# An adapter of attn.c_proj alone, a square matrix, fits the base by its shape and changes the model in another way. The
# other layers get shapes that do not fit the base. A Llama's adapter is right, read by the same lines.
#
# The converter is the one that the source package of llama-cpp-python 0.3.36 ships, with the transformers 4.57.6 that
# its requirements name (and torch 2.13.0, where they name 2.11.0). Shapes are (out, in), as llama.cpp multiplies:
# "said" is what PEFT's merge adds to the weight, "written" is lora_b @ lora_a * alpha / rank of the converter's file.
# llama.cpp itself was not run here.
# Seen with Python 3.11:
#
#     torch 2.13.0+cpu transformers 4.57.6 peft 0.21.2
#     gpt2 attn.c_proj: said (64, 64), written (64, 64), up to 0.29, apart by 3.9e-01; same False, transpose True
#     gpt2 attn.c_attn: said (192, 64), written (64, 192); same False, transpose True
#     gpt2 mlp.c_fc: said (256, 64), written (64, 256); same False, transpose True
#     gpt2 mlp.c_proj: said (64, 256), written (256, 64); same False, transpose True
#     llama self_attn.o_proj: said (64, 64), written (64, 64), up to 0.30, apart by 1.5e-08; same True, transpose False
#     llama mlp.down_proj: said (64, 256), written (64, 256), up to 0.16, apart by 1.5e-08; same True, transpose False
#
# Exits with 1 if the converter no longer does this.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/environment"
"$folder/environment/bin/pip" install -q --no-compile "torch==2.13.0" "numpy==2.2.6" "transformers==4.57.6" \
    "peft==0.21.2" "sentencepiece==0.2.1" "protobuf==4.25.8" "pyyaml==6.0.3" "tqdm==4.70.1"
"$folder/environment/bin/pip" download -q --no-deps --no-binary llama-cpp-python -d "$folder" "llama-cpp-python==0.3.36"
tar -xzf "$folder/llama_cpp_python-0.3.36.tar.gz" -C "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
cd "$folder"
"$folder/environment/bin/python" - "$folder/llama_cpp_python-0.3.36/vendor/llama.cpp" <<'END'
import subprocess
import sys

import numpy as np
import peft
import torch
import transformers

converter = sys.argv[1] + "/convert_lora_to_gguf.py"
sys.path.insert(0, sys.argv[1] + "/gguf-py")
import gguf

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
RANK, ALPHA = 4, 8
GPT2 = transformers.GPT2Config(vocab_size=96, n_embd=64, n_layer=1, n_head=4, n_positions=64)
LLAMA = transformers.LlamaConfig(
    vocab_size=96, hidden_size=64, num_hidden_layers=1, intermediate_size=256, num_attention_heads=4
)
LAYERS = {
    "gpt2": {
        "transformer.h.0.attn.c_proj": "blk.0.attn_output.weight",
        "transformer.h.0.attn.c_attn": "blk.0.attn_qkv.weight",
        "transformer.h.0.mlp.c_fc": "blk.0.ffn_up.weight",
        "transformer.h.0.mlp.c_proj": "blk.0.ffn_down.weight",
    },
    "llama": {
        "model.layers.0.self_attn.o_proj": "blk.0.attn_output.weight",
        "model.layers.0.mlp.down_proj": "blk.0.ffn_down.weight",
    },
}


def said(config, layers):
    """What PEFT's merge adds to the weight of each layer, as (out, in); leaves the folders base and adapter."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained("base")
    before = {layer: model.get_submodule(layer).weight.detach().clone() for layer in layers}
    conv = {layer: isinstance(model.get_submodule(layer), transformers.pytorch_utils.Conv1D) for layer in layers}
    rule = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=list(layers),
        init_lora_weights=False,
        fan_in_fan_out=all(conv.values()),
    )
    adapted = peft.get_peft_model(model, rule)
    adapted.save_pretrained("adapter")
    merged = adapted.merge_and_unload()
    added = {layer: (merged.get_submodule(layer).weight.detach() - before[layer]).numpy() for layer in layers}
    return {layer: matrix.T if conv[layer] else matrix for layer, matrix in added.items()}


def written(layers):
    """The product lora_b @ lora_a * alpha / rank of each layer in the file that the converter makes of adapter."""
    command = [sys.executable, converter, "adapter", "--base", "base", "--outfile", "adapter.gguf"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "WARNING:" not in done.stderr and "ERROR:" not in done.stderr, done.stderr
    reader = gguf.GGUFReader("adapter.gguf")
    found = {entry.name: np.array(entry.data) for entry in reader.tensors}
    scale = reader.fields["adapter.lora.alpha"].contents() / RANK
    return {layer: found[name + ".lora_b"] @ found[name + ".lora_a"] * scale for layer, name in layers.items()}


def equal(one, other):
    return one.shape == other.shape and np.abs(one - other).max() < 1e-5


verdicts = []
for kind, config in (("gpt2", GPT2), ("llama", LLAMA)):
    ours, theirs = said(config, LAYERS[kind]), written(LAYERS[kind])
    for layer in LAYERS[kind]:
        one, other = ours[layer], theirs[layer]
        line = f"{kind} {layer.split('.0.')[1]}: said {one.shape}, written {other.shape}"
        if one.shape == other.shape:
            line += f", up to {np.abs(one).max():.2f}, apart by {np.abs(one - other).max():.1e}"
        same, turned = equal(one, other), equal(one, other.T)
        print(line + f"; same {same}, transpose {turned}")
        verdicts.append((same, turned) == ((True, False) if kind == "llama" else (False, True)))
sys.exit(0 if all(verdicts) else 1)
END
