#!/usr/bin/env bash
# mlx-lm reads a folder that transformers 5 has saved with another rope.
#
# transformers 5 writes the base and the scaling of the rotary embedding as one entry of config.json, rope_parameters,
# and no longer as rope_theta and rope_scaling. mlx-lm 0.32.2 asks for transformers 5.7 or newer, and some of its models
# (qwen3 among them) know the entry. Others, such as llama and qwen2, drop it: the model loads, no warning, and
# turns with a base of 10000 (qwen2: 1000000) and without scaling. With the same numbers written in the older form
# into the same config.json, mlx-lm agrees with transformers in fp32. So the weights and the arithmetic are right, and
# the configuration alone is read otherwise. Folders of the hub in the older form are not concerned. Pull request 953 of
# mlx-lm, which is not in this release, is about the new entry.
#
# The models are tiny and random; a figure is the largest difference of logits from transformers over 60 tokens.
# Seen on a CPU under Linux with Python 3.11:
#
#     torch 2.13.0+cpu transformers 5.23.0 mlx 0.32.4 mlx-lm 0.32.2
#     llama, base 10000: 2.4e-06 as saved, 2.4e-06 in the older form (logits' deviation 0.79)
#     llama, base 500000: 1.6e+00 as saved, 2.9e-06 in the older form (logits' deviation 0.79)
#     llama, base 10000, scaling of Llama 3: 2.1e+00 as saved, 2.6e-06 in the older form (logits' deviation 0.79)
#     qwen2, base 10000: 1.5e+00 as saved, 2.7e-06 in the older form (logits' deviation 0.82)
#     qwen3, base 500000: 2.7e-06 as saved, 2.7e-06 in the older form (logits' deviation 0.80)
#
# Exits with 1 if mlx-lm no longer does this.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/environment"
"$folder/environment/bin/pip" install -q --no-compile "torch==2.13.0" "numpy==2.4.6" "transformers==5.23.0" \
    "mlx-lm[cpu]==0.32.2" "mlx[cpu]==0.32.4"
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error
cd "$folder"
"$folder/environment/bin/python" -W error::UserWarning - <<'END'
import importlib.metadata
import json
import pathlib
import sys

import mlx.core as mx
import numpy as np
import torch
import transformers
from mlx_lm.utils import load_model

mx.set_default_device(mx.cpu)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "mlx", "mlx-lm")))
transformers.utils.logging.disable_progress_bar()
SIZES = dict(vocab_size=96, hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=2, head_dim=16, max_position_embeddings=128, tie_word_embeddings=False)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(original_max_position_embeddings=32)
CASES = {
    "llama, base 10000": ("llama", dict(rope_type="default", rope_theta=10000.0)),
    "llama, base 500000": ("llama", dict(rope_type="default", rope_theta=500000.0)),
    "llama, base 10000, scaling of Llama 3": ("llama", LLAMA3 | dict(rope_theta=10000.0)),
    "qwen2, base 10000": ("qwen2", dict(rope_type="default", rope_theta=10000.0)),
    "qwen3, base 500000": ("qwen3", dict(rope_type="default", rope_theta=500000.0)),
}


def apart(folder, ids, logits):
    """Largest difference of mlx-lm's logits for the folder from those given."""
    model, _ = load_model(folder)
    return float(np.abs(np.array(model(mx.array(ids.numpy()))) - logits.numpy()).max())


def differences(kind, rope):
    """mlx-lm on the folder as transformers saved it, and with the rope written in the older form as well."""
    folder = pathlib.Path("model")
    config = transformers.AutoConfig.for_model(kind, **SIZES, rope_parameters=rope)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    ids = torch.randint(96, (1, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = transformers.AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
    saved = apart(folder, ids, logits)
    entries = json.loads((folder / "config.json").read_text())
    assert entries["rope_parameters"] == rope and not {"rope_theta", "rope_scaling"} & entries.keys()
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    entries |= dict(rope_theta=rope["rope_theta"])
    if rope["rope_type"] != "default":
        entries |= dict(rope_scaling=scaling)
    (folder / "config.json").write_text(json.dumps(entries))
    return saved, apart(folder, ids, logits), float(logits.std())


wrong = {}
for case, (kind, rope) in CASES.items():
    saved, older, spread = differences(kind, rope)
    print(f"{case}: {saved:.1e} as saved, {older:.1e} in the older form (logits' deviation {spread:.2f})")
    wrong[case] = saved > 0.1
    if older > 1e-4 or 1e-4 < saved < 0.1:
        sys.exit(1)
sys.exit(0 if list(wrong.values()) == [False, True, True, True, False] else 1)
END
