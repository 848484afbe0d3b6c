"""`nn.Linear`, and its subclasses that leave its forward as it is."""

from torch import nn

from xgblora.adapters.kinds.kind import LayerKind, declared_features


def has_the_forward(module: nn.Module) -> bool:
    """Whether the forward of the module's class is that of `nn.Linear`."""
    # a scripted module's class has none
    return getattr(type(module), "forward", None) is nn.Linear.forward


def features(module: nn.Module) -> tuple[int, int] | None:
    """(in_features, out_features) of such a layer; else None."""
    return declared_features(module) if has_the_forward(module) else None


LINEAR = LayerKind("nn.Linear", features, multiplies=has_the_forward, fan_in_fan_out=False)
