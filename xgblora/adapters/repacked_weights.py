"""What a checkpoint has of a layer, the same before and after its weight is repacked for the CPU that it runs on.

bitsandbytes repacks 4-bit weights at their first forward on CPUs with AVX-512 in bf16, and rounds their scales to bf16.
Asking such a layer for its state dict puts the codes back and not the scales (0.50), after which it computes something
else; so it is not asked.
"""

import copy
import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def state_of(module: nn.Module) -> dict[str, Any]:
    """What the state dict of `module` has of itself, without its children; 4-bit weights as they are once repacked."""
    weight = module._parameters.get("weight")
    state = getattr(weight, "quant_state", None)
    own: dict[str, Any] = {}
    if state is None:
        module._save_to_state_dict(own, "", keep_vars=True)
        return own
    data, state = _packed(weight.data, state)
    own = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
    parts = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    return {**own, "weight": data, **parts}


def _packed(data: Tensor, state: Any) -> tuple[Tensor, Any]:
    """A 4-bit weight and its state as they are once repacked; neither is changed."""
    pack = _pack_of_bitsandbytes()
    # rows are packed by 32
    if pack is None or getattr(state, "packing_format_for_cpu", False) or len(state.shape) != 2 or state.shape[0] % 32:
        return data, state
    return pack(data, copy.deepcopy(state))


def _pack_of_bitsandbytes() -> Callable[[Tensor, Any], tuple[Tensor, Any]] | None:
    try:
        functional = importlib.import_module("bitsandbytes.functional")
    except ImportError:
        return None
    return getattr(functional, "_convert_weight_packed_for_cpu", None)
