"""Which kinds of layers there are."""

from torch import nn

from xgblora.adapters.kinds.kind import LayerKind
from xgblora.errors import InputError

# the one that was registered last is asked first
_KINDS: list[LayerKind] = []


def register_kind(kind: LayerKind) -> LayerKind:
    """Let layers of `kind` carry adapters; it is asked before all kinds that are there already.

    Raises:
        InputError: there is a kind of this name.
    """
    if any(other.name == kind.name for other in _KINDS):
        raise InputError(f"kind={kind.name}: a kind of layer of this name is registered already; choose another")
    _KINDS.insert(0, kind)
    return kind


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of a layer that can carry an adapter, None for every other module."""
    return next((kind for kind in _KINDS if kind.features(module) is not None), None)


def names_of_kinds() -> list[str]:
    """What messages call the kinds, the most general first."""
    return [kind.name for kind in reversed(_KINDS)]
