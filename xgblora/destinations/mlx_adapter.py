"""All boosters as one LoRA adapter in mlx-lm's format (`mlx_lm.generate --adapter-path FOLDER`), as of mlx-lm 0.32.2.

Two files: `adapters.safetensors` with `LAYER.lora_a` [K, rank] and `LAYER.lora_b` [rank, N] in fp32, and
`adapter_config.json`, which says the rank, the scale and which layers of each block carry an adapter. Neither mlx nor
mlx-lm is needed to write them.
"""

import json
import os
import re

from safetensors.torch import save_file
from torch import nn

from xgblora.atomic_file import replacing_folder
from xgblora.boosting import Ledger
from xgblora.boosting.truncation import TruncationCost, adapter_factors, rank_of
from xgblora.errors import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
# models by transformers' `model_type` whose layers mlx-lm calls and shapes as transformers does
KNOWN = (
    *("cohere2", "gemma", "gemma2", "gemma3_text", "glm4", "granite", "llama", "mistral", "nemotron", "olmo2", "phi"),
    *("phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2"),
)
_LAYER = re.compile(r"model\.layers\.\d+\.(.+)")


def export_mlx(
    ledger: Ledger, folder: str | os.PathLike, *, base_model: nn.Module | None, rank: int | None = None
) -> TruncationCost | None:
    """Write the boosters as a folder that `mlx_lm.load(base, adapter_path=folder)` loads.

    The folder appears whole; one that is there already is replaced.

    Args:
        ledger: the boosters.
        folder: where to.
        base_model: the base, on any device, the meta device included: its kind and its depth are looked at.
        rank: at most this rank, by the nearest adapter that has it (see `truncation`).

    Returns:
        What the smaller rank cost; None if nothing had to be cut off.

    Raises:
        InputError: what `adapter_factors` raises; `base_model` is None, of a kind that mlx-lm does not have in
            transformers' form, or a layer is outside of the blocks.
    """
    keys = _keys(ledger.origin.layers, base_model)
    factors, cost = adapter_factors(ledger, rank)
    tensors = {}
    for name, layer in factors.items():
        tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = layer.a.T.contiguous(), layer.b
    config = {
        "model": ledger.origin.model,
        "fine_tune_type": "lora",
        "num_layers": base_model.config.num_hidden_layers,
        # the scales are folded into `lora_b`
        "lora_parameters": {"rank": rank_of(factors), "scale": 1.0, "dropout": 0.0, "keys": keys},
    }
    with replacing_folder(folder) as temporary:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "mlx"})
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return cost


def _keys(layers: tuple[str, ...], model: nn.Module | None) -> list[str]:
    """The adapted layers by their names inside a block; in a block where one has no adapter, mlx-lm's stays zero."""
    if model is None:
        raise InputError("format=mlx: the base's configuration is needed and is not on this machine; give --model_name")
    kind = model.config.model_type
    if kind not in KNOWN:
        raise InputError(
            f"format=mlx: no adapter of a model of type {kind} can be taken to mlx-lm; known are {', '.join(KNOWN)}"
        )
    found = {layer: _LAYER.fullmatch(layer) for layer in layers}
    outside = [layer for layer, match in found.items() if match is None]
    if outside:
        raise InputError(f"format=mlx: mlx-lm adapts layers of the blocks alone, and {outside[0]} is in none")
    return sorted({match[1] for match in found.values()})
