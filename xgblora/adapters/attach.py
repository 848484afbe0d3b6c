"""`attach` and `detach`: put adapters around the linear layers of a model, and take them off again."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from xgblora.adapters.adapter_set import AdapterSet
from xgblora.adapters.aliased_weights import aliased_weights
from xgblora.adapters.kinds.registry import kind_of
from xgblora.adapters.memory import memory_of
from xgblora.adapters.rank1_linear import Rank1Linear, scale_of
from xgblora.errors import InputError
from xgblora.spelling import dtype_name

logger = logging.getLogger("xgblora")

# The first row whose names all occur in the model is taken. Query and value projections are LoRA's own choice (Hu et
# al., 2021, section 7.1).
DEFAULT_TARGETS = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
    ("c_attn",),
)

# These read the weights of their linear layers without calling them: `MultiheadAttention` always, the encoder layer
# in its fast path, which inference without gradients takes.
_READ_WEIGHTS_THEMSELVES = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


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
        model: any module; the layers in it that can carry an adapter are the candidates: those of the kinds that are
            registered (`xgblora.adapters.kinds`), such as `nn.Linear`, transformers' `Conv1D`, and modules with
            `in_features`, `out_features` and a weight (quantised, custom).
        target_modules: names or dotted suffixes of layers ("q_proj", "layers.3.fc1", a full name), or one regular
            expression that must match a layer's full name; None takes the query and value projections.
        alpha: the scale is `alpha / rank`; it has no default because comparisons hang on it.
        rank: 1 for XGBLoRA.
        seed: seed of the adapters' initialisation.

    Returns:
        The adapters; the model computes what it computed before, since `b` starts at zero.

    Raises:
        InputError: nothing matches (the message lists what there is), adapters are attached already, alpha or rank is
            out of range, a matched weight is shared with another module, or its layer is never called.
    """
    scale_of(alpha, rank)
    if any(isinstance(module, Rank1Linear) for module in model.modules()):
        raise InputError("the model has adapters already: xgblora.detach(model) first")
    candidates = candidate_layers(model)
    names = match_layers(candidates, target_modules)
    _refuse_layers_never_called(model, names)
    _refuse_aliased_weights(model, names)
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    layers = {}
    for name in names:
        make = kind_of(candidates[name]).layer or Rank1Linear
        # the arena draws all of them
        layers[name] = make(candidates[name], alpha=alpha, rank=rank, seed=None)
        layers[name].frozen_with = frozen
        _replace(model, name, layers[name])
    adapters = AdapterSet(model=model, layers=layers, alpha=alpha, rank=rank, seed=seed)
    _log(adapters)
    return adapters


@torch.no_grad()
def detach(model: nn.Module, *, fold: bool = True) -> nn.Module:
    """Take the adapters off: the plain model again, in place, with the parameters trainable that were so before.

    Args:
        model: a model with adapters; one without is returned as it is.
        fold: add `scale * b^T a` to the weights (rounded to nearest), so that the model computes what it did with its
            adapters. False drops them, and the boosters in banks with them.

    Raises:
        InputError: `fold`, and a layer has an adapter or boosters that its weight cannot take; nothing is changed.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Rank1Linear)}
    if fold:
        _refuse_what_cannot_be_folded(layers)
    for parameter in {parameter for layer in layers.values() for parameter in layer.frozen_with}:
        parameter.requires_grad_(True)
    for name, layer in layers.items():
        if fold and layer.mergeable:
            for matrix, folded in _folded(layer):
                matrix.copy_(folded)
        _replace(model, name, layer.base)
    return model


def candidate_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers in `model` that can carry an adapter, by name, in model order; the model itself is none.

    A layer inside another candidate is part of it (the `base_layer` of a PEFT layer): adapting both would be adapting
    it twice.
    """
    candidates: dict[str, nn.Module] = {}
    last = None
    for name, module in model.named_modules():
        inside = last is not None and name.startswith(f"{last}.")
        if name and not inside and kind_of(module) is not None:
            candidates[name], last = module, name
    return candidates


def match_layers(candidates: dict[str, nn.Module], target_modules: str | Iterable[str] | None) -> list[str]:
    """Names among `candidates` that `target_modules` selects, in model order.

    Raises:
        InputError: a name, or the expression, selects none.
    """
    if target_modules is None:
        return _default_layers(candidates)
    if isinstance(target_modules, str):
        return _matching_expression(candidates, target_modules)
    targets = list(target_modules)
    if not targets:
        raise InputError("target_modules is empty: name at least one layer, or leave it out for the default")
    for target in targets:
        if not any(_has_suffix(name, target) for name in candidates):
            raise InputError(f"target_modules={target}: matches no linear layer; there are {_summary(candidates)}")
    return [name for name in candidates if any(_has_suffix(name, target) for target in targets)]


def _default_layers(candidates: dict[str, nn.Module]) -> list[str]:
    endings = {name.rpartition(".")[2] for name in candidates}
    for targets in DEFAULT_TARGETS:
        if endings.issuperset(targets):
            return [name for name in candidates if name.rpartition(".")[2] in targets]
    raise InputError(f"no default target_modules for this model: choose from {_summary(candidates)}")


def _matching_expression(candidates: dict[str, nn.Module], expression: str) -> list[str]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise InputError(f"target_modules={expression}: not a regular expression ({error})") from None
    names = [name for name in candidates if pattern.fullmatch(name) or _has_suffix(name, expression)]
    if not names:
        raise InputError(f"target_modules={expression}: matches no linear layer; there are {_summary(candidates)}")
    return names


def _has_suffix(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith("." + suffix)


def _summary(candidates: dict[str, nn.Module]) -> str:
    endings = sorted({name.rpartition(".")[2] for name in candidates})
    return ", ".join(endings) if endings else "none in this model"


def _refuse_layers_never_called(model: nn.Module, names: list[str]) -> None:
    for name in names:
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, _READ_WEIGHTS_THEMSELVES):
            raise InputError(
                f"target_modules: {name} is part of nn.{type(parent).__name__}, which reads its weight and never calls "
                "it: an adapter there would have no effect"
            )


def _refuse_aliased_weights(model: nn.Module, names: list[str]) -> None:
    for name, other in aliased_weights(model, names):
        raise InputError(f"target_modules: the weight of {name} is shared with {other} and cannot be merged into")


def _refuse_what_cannot_be_folded(layers: dict[str, Rank1Linear]) -> None:
    for name, layer in layers.items():
        if layer.bank is not None or (not layer.mergeable and bool(torch.any(layer.b != 0))):
            raise InputError(
                f"{name}: its boosters cannot be folded into a {_described(layer)}; export them as a PEFT "
                "adapter (xgblora-export RUN --format peft), or drop them with detach(model, fold=False)"
            )
        if layer.mergeable and not all(bool(torch.isfinite(folded).all()) for _, folded in _folded(layer)):
            raise InputError(
                f"{name}: its adapter cannot be folded in, the weight would pass the range of {_described(layer)}; "
                "drop it with detach(model, fold=False)"
            )


def _folded(layer: Rank1Linear) -> Iterator[tuple[Tensor, Tensor]]:
    """The matrices of a layer, and what they become with its adapter in them."""
    matrices = layer.matrices
    parts = (part.unflatten(0, (len(matrices), -1)) for part in (layer.a, layer.b))
    for matrix, a, b in zip(matrices, *parts, strict=True):
        yield matrix, (matrix.float() + layer.scale * (b.T @ a)).to(matrix.dtype)


def _log(adapters: AdapterSet) -> None:
    layers = adapters.layers.values()
    logger.info(
        "adapters on %d layers, %s trainable parameters; %s",
        len(layers),
        f"{adapters.num_parameters():,}",
        memory_of(adapters),
    )
    kinds = Counter(_described(layer) for layer in layers if not layer.mergeable)
    if kinds:
        logger.info(
            "%d of %d adapted layers cannot be merged into (%s): their boosters stay in a bank beside the weights",
            sum(kinds.values()),
            len(layers),
            ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
        )


def _described(layer: Rank1Linear) -> str:
    """What a layer's base is, for a message: "Linear4bit of Params4bit uint8", "Linear of Int8Tensor bfloat16"."""
    base = layer.base
    weight = getattr(base, layer.kind.weight_name, getattr(base, "qweight", None))
    if not isinstance(weight, torch.Tensor):
        return type(base).__name__
    subclass = "" if type(weight) in (torch.Tensor, nn.Parameter) else f"{type(weight).__name__} "
    return f"{type(base).__name__} of {subclass}{dtype_name(weight.dtype)}"


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
