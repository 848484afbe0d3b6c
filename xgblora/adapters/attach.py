"""`attach` and `detach`: put adapters around the linear layers of a model, and take them off again."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from xgblora.adapters.adapter_set import AdapterSet
from xgblora.adapters.depth import WHOLE, Depths
from xgblora.adapters.dispatched import give_hook, refuse_offloaded, take_hook
from xgblora.adapters.kinds.registry import kind_of
from xgblora.adapters.memory import memory_of
from xgblora.adapters.mixture import close_mixtures, open_mixtures, replace_module
from xgblora.adapters.rank1_linear import Rank1Linear, scale_of
from xgblora.adapters.targets import candidate_layers, choose_layers
from xgblora.errors import InputError
from xgblora.spelling import dtype_name

logger = logging.getLogger("xgblora")


def attach(
    model: nn.Module,
    target_modules: str | Iterable[str] | None = None,
    *,
    alpha: float,
    rank: int = 1,
    seed: int = 0,
    depths: Depths = WHOLE,
    head: Callable[[str], bool] | None = None,
    trial: bool = True,
) -> AdapterSet:
    """Freeze `model` and put an adapter on each target layer.

    Args:
        model: any module, on one device or several (`device_map`); the layers in it that can carry an adapter are the
            candidates: those of the kinds that are registered (`xgblora.adapters.kinds`), such as `nn.Linear`,
            transformers' `Conv1D`, and modules with `in_features`, `out_features` and a weight (quantised, custom).
        target_modules: names or dotted suffixes of layers ("q_proj", "layers.3.fc1", a full name), or one regular
            expression that must match a layer's full name; "all-linear" takes every linear layer that is called inside
            the blocks, routers left out; None takes the query and value projections.
        alpha: the scale is `alpha / rank`; it has no default because comparisons hang on it.
        rank: 1 for XGBLoRA.
        seed: seed of the adapters' initialisation.
        depths: of the target layers only those of blocks that lie there, such as `Depths(0.5, 1.0)`.
        head: says which layers, by name, are of a head: all that can be are adapted beside the target layers.
        trial: try by two short texts where an adapter acts; False for layers that were tried when a record of them
            began, and no forward is run.

    Returns:
        The adapters; the model computes what it computed before, since `b` starts at zero.

    Raises:
        InputError: nothing matches (the message lists what there is), adapters are attached already, the model is
            compiled, a module is offloaded, alpha or rank is out of range, a matched weight is shared with another
            module, or an adapter on a named layer would not act as a change of its weight does (see `adapters.trial`).
    """
    scale_of(alpha, rank)
    _refuse_what_takes_no_adapters(model)
    open_mixtures(model)
    try:
        chosen = set(depths.within(model, choose_layers(model, target_modules, trial=trial)))
        names = [name for name in candidate_layers(model) if name in chosen or (head is not None and head(name))]
    except InputError:
        close_mixtures(model)
        raise
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    layers = {}
    for name in names:
        base = model.get_submodule(name)
        make, hook = kind_of(base).layer or Rank1Linear, take_hook(base)
        # the arena draws all of them
        layers[name] = make(base, alpha=alpha, rank=rank, seed=None)
        layers[name].frozen_with = frozen
        give_hook(layers[name], hook)
        replace_module(model, name, layers[name])
    close_mixtures(model)
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
        hook = take_hook(layer)
        replace_module(model, name, layer.base)
        layer.detached = True
        give_hook(layer.base, hook)
    close_mixtures(model)
    return model


def _refuse_what_takes_no_adapters(model: nn.Module) -> None:
    if any(isinstance(module, Rank1Linear) for module in model.modules()):
        raise InputError("the model has adapters already: xgblora.detach(model) first")
    if any("_orig_mod" in name.split(".") for name, _ in model.named_modules()):
        # its layers have other names than those of its base, in every record and export
        raise InputError("the model was compiled: attach adapters first, and torch.compile the model that has them")
    refuse_offloaded(model)


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
    parts = (part[0].unflatten(0, (len(matrices), -1)) for part in layer.own_group(layer.device))
    for matrix, a, b in zip(matrices, *parts, strict=True):
        yield matrix, (matrix.float() + layer.scale * (b.T @ a)).to(matrix.dtype)


def _log(adapters: AdapterSet) -> None:
    layers = adapters.layers.values()
    logger.info(
        "adapters on %d layers (%s), %s trainable parameters; %s",
        len(layers),
        by_kind(adapters.layers),
        f"{adapters.num_parameters():,}",
        memory_of(adapters),
    )
    if len(adapters.arena.devices) > 1:
        logger.info("adapters lie on %s, and their layers there and on %s", *_spread(adapters.arena.devices))
    kinds = Counter(_described(layer) for layer in layers if not layer.mergeable)
    if kinds:
        logger.info(
            "%d of %d adapted layers cannot be merged into (%s): their boosters stay in a bank beside the weights",
            sum(kinds.values()),
            len(layers),
            ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
        )


def _spread(devices: list[torch.device]) -> tuple[str, str]:
    home, *others = map(str, devices)
    return home, " and ".join(others)


def by_kind(layers: Mapping[str, Rank1Linear]) -> str:
    """Layers by the last part of their names, and how many there are of each: "q_proj 6, v_proj 6".

    Those of a mixture have the part before it too, and their experts: "experts.down_proj 6 of 8 experts".
    """
    counts: Counter[tuple[str, int]] = Counter()
    for name, layer in layers.items():
        experts = len(layer.matrices) if layer.mergeable else 1
        counts[".".join(name.split(".")[-2 if experts > 1 else -1 :]), experts] += 1
    return ", ".join(
        f"{kind} {count}{f' of {experts} experts' if experts > 1 else ''}"
        for (kind, experts), count in sorted(counts.items())
    )


def _described(layer: Rank1Linear) -> str:
    """What a layer's base is, for a message: "Linear4bit of Params4bit uint8", "Linear of Int8Tensor bfloat16"."""
    base = layer.base
    weight = getattr(base, layer.kind.weight_name, getattr(base, "qweight", None))
    if not isinstance(weight, torch.Tensor):
        return type(base).__name__
    subclass = "" if type(weight) in (torch.Tensor, nn.Parameter) else f"{type(weight).__name__} "
    return f"{type(base).__name__} of {subclass}{dtype_name(weight.dtype)}"
