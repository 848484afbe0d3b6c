"""transformers' `Conv1D` (GPT-2): `x W + bias` with W stored as [in_features, out_features]."""

from torch import Tensor, nn

from xgblora.adapters.kinds.kind import LayerKind


def is_conv1d(module: nn.Module) -> bool:
    """Known by its class name, its `nf` (out_features) and a 2-D weight: transformers need not be imported."""
    if type(module).__name__ != "Conv1D" or not isinstance(getattr(module, "nf", None), int):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def features(module: nn.Module) -> tuple[int, int] | None:
    """(in_features, out_features) of such a layer; else None."""
    return tuple(module.weight.shape) if is_conv1d(module) else None


def transposed(weight: Tensor) -> Tensor:
    """[out_features, in_features], a view."""
    return weight.T


CONV1D = LayerKind("transformers' Conv1D", features, matrix=transposed, multiplies=is_conv1d, fan_in_fan_out=True)
