"""`attach` and `detach`: put adapters around the linear layers of a model, and take them off again."""

import re
from collections.abc import Iterable

import torch
from torch import nn

from xgblora.adapters.adapter_set import AdapterSet
from xgblora.adapters.rank1_linear import Rank1Linear, scale_of
from xgblora.errors import InputError

# The first row whose names all occur in the model is taken. Query and value projections are LoRA's own choice (Hu et
# al., 2021, section 7.1).
DEFAULT_TARGETS = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
)


def attach(
    model: nn.Module,
    target_modules: str | Iterable[str] | None = None,
    *,
    alpha: float,
    rank: int = 1,
    seed: int = 0,
) -> AdapterSet:
    """Freeze `model` and put an adapter on each target layer.

    Args:
        model: any module; its `nn.Linear` children are the candidates.
        target_modules: names or dotted suffixes of layers ("q_proj", "layers.3.fc1", a full name), or one regular
            expression that must match a layer's full name; None takes the query and value projections.
        alpha: the scale is `alpha / rank`; it has no default because comparisons hang on it.
        rank: 1 for XGBLoRA.
        seed: seed of the adapters' initialisation.

    Returns:
        The adapters; the model computes what it computed before, since `b` starts at zero.

    Raises:
        InputError: nothing matches (the message lists what there is), adapters are attached already, alpha or rank is
            out of range, or a matched weight is shared by two layers.
    """
    scale_of(alpha, rank)
    if any(isinstance(module, Rank1Linear) for module in model.modules()):
        raise InputError("the model has adapters already: xgblora.detach(model) first")
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name}
    names = match_layers(linears, target_modules)
    _refuse_shared_weights(model, names)
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    layers = {}
    for name in names:
        layers[name] = Rank1Linear(linears[name], alpha=alpha, rank=rank)
        _replace(model, name, layers[name])
    adapters = AdapterSet(model=model, layers=layers, alpha=alpha, rank=rank, seed=seed)
    adapters.arena.frozen = frozen
    return adapters


@torch.no_grad()
def detach(model: nn.Module, *, fold: bool = True) -> nn.Module:
    """Take the adapters off: the plain model again, in place, with the parameters trainable that were so before.

    Args:
        model: a model with adapters; one without is returned as it is.
        fold: add `scale * b^T a` to the weights (rounded to nearest), so that the model computes what it did with its
            adapters. False drops them.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Rank1Linear)}
    for arena in {layer._arena for layer in layers.values() if layer._arena is not None}:
        arena.unfreeze()
    for name, layer in layers.items():
        if fold:
            update = layer.scale * (layer.b.T @ layer.a)
            layer.weight.copy_(layer.weight.float() + update)
        _replace(model, name, layer.base)
    return model


def match_layers(linears: dict[str, nn.Linear], target_modules: str | Iterable[str] | None) -> list[str]:
    """Names among `linears` that `target_modules` selects, in model order.

    Raises:
        InputError: a name, or the expression, selects none.
    """
    if target_modules is None:
        return _default_layers(linears)
    if isinstance(target_modules, str):
        return _matching_expression(linears, target_modules)
    targets = list(target_modules)
    if not targets:
        raise InputError("target_modules is empty: name at least one layer, or leave it out for the default")
    for target in targets:
        if not any(_has_suffix(name, target) for name in linears):
            raise InputError(f"target_modules={target}: matches no linear layer; there are {_summary(linears)}")
    return [name for name in linears if any(_has_suffix(name, target) for target in targets)]


def _default_layers(linears: dict[str, nn.Linear]) -> list[str]:
    endings = {name.rpartition(".")[2] for name in linears}
    for targets in DEFAULT_TARGETS:
        if endings.issuperset(targets):
            return [name for name in linears if name.rpartition(".")[2] in targets]
    raise InputError(f"no default target_modules for this model: choose from {_summary(linears)}")


def _matching_expression(linears: dict[str, nn.Linear], expression: str) -> list[str]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise InputError(f"target_modules={expression}: not a regular expression ({error})") from None
    names = [name for name in linears if pattern.fullmatch(name) or _has_suffix(name, expression)]
    if not names:
        raise InputError(f"target_modules={expression}: matches no linear layer; there are {_summary(linears)}")
    return names


def _has_suffix(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith("." + suffix)


def _summary(linears: dict[str, nn.Linear]) -> str:
    endings = sorted({name.rpartition(".")[2] for name in linears})
    return ", ".join(endings) if endings else "none in this model"


def _refuse_shared_weights(model: nn.Module, names: list[str]) -> None:
    owners: dict[int, list[str]] = {}
    # a layer that is used under two names is listed twice
    for module_name, module in model.named_modules(remove_duplicate=False):
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter):
            owners.setdefault(id(weight), []).append(module_name)
    weights = {name: id(model.get_submodule(name).weight) for name in names}
    for name, weight in weights.items():
        others = [owner for owner in owners[weight] if owner != name]
        if others:
            raise InputError(
                f"target_modules: the weight of {name} is shared with {others[0]} and cannot be merged into"
            )


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
