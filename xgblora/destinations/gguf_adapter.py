"""All boosters as one LoRA adapter in llama.cpp's own format, which it applies at run time (`--lora adapter.gguf`).

The layout is that of llama.cpp's `convert_lora_to_gguf.py`: for each weight `NAME.lora_a` [rank, K] and `NAME.lora_b`
[N, rank] in fp32, and the entries `general.type`, `adapter.type` and `adapter.lora.alpha`.
"""

import os

from torch import Tensor, nn

from xgblora.atomic_file import replacing_folder
from xgblora.boosting import Ledger
from xgblora.boosting.truncation import TruncationCost, adapter_factors, rank_of
from xgblora.destinations.llama_cpp import form_of, tensor_names
from xgblora.errors import InputError

FILE = "adapter.gguf"
_FLAG = "format=gguf"


def export_gguf(
    ledger: Ledger, folder: str | os.PathLike, *, base_model: nn.Module | None, rank: int | None = None
) -> TruncationCost | None:
    """Write the boosters as `folder/adapter.gguf`, for the base model as `convert_hf_to_gguf.py` makes it.

    The folder appears whole; one that is there already is replaced.

    Args:
        ledger: the boosters.
        folder: where to.
        base_model: the base, on any device, the meta device included: its kind and its heads are looked at.
        rank: at most this rank, by the nearest adapter that has it (see `truncation`).

    Returns:
        What the smaller rank cost; None if nothing had to be cut off.

    Raises:
        InputError: what `adapter_factors` raises; `base_model` is None or of a kind that llama.cpp does not have; the
            package gguf is missing.
    """
    form = form_of(base_model, flag=_FLAG)
    names = tensor_names(ledger.origin.layers, base_model, flag=_FLAG)
    factors, cost = adapter_factors(ledger, rank)
    import gguf

    with replacing_folder(folder) as temporary:
        writer = gguf.GGUFWriter(temporary / FILE, form.architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        # as large as the rank: llama.cpp scales by alpha / rank
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank_of(factors)))
        for layer, name in names.items():
            b = factors[layer].b.T
            rows = _interleaved(b, _heads(layer, base_model)) if form.permuted and _is_rotated(layer) else b
            writer.add_tensor(f"{name}.lora_a", factors[layer].a.numpy())
            writer.add_tensor(f"{name}.lora_b", rows.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return cost


def _is_rotated(layer: str) -> bool:
    return layer.endswith((".q_proj", ".k_proj"))


def _heads(layer: str, model: nn.Module) -> int:
    """Into how many heads the rows of a layer fall."""
    heads = model.config.num_attention_heads
    return heads if layer.endswith(".q_proj") else getattr(model.config, "num_key_value_heads", None) or heads


def _interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows [N, R] in llama.cpp's order: of each head the first of either half, the second of either half, and so on."""
    size, rank = rows.shape
    if size % (2 * heads):
        raise InputError(f"{_FLAG}: {size} rows are not those of {heads} heads")
    return rows.reshape(heads, 2, size // heads // 2, rank).swapaxes(1, 2).reshape(size, rank)
