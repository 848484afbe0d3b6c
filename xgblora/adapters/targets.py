"""Which layers of a model are adapted: by name, by an expression, by default, or all of its blocks."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from xgblora.adapters.aliased_weights import aliased_weights
from xgblora.adapters.kinds.registry import kind_of
from xgblora.adapters.trial import Faults, faults_when_called, faults_when_changed
from xgblora.errors import InputError

# what stands for every linear layer that is called inside the blocks
ALL_LINEAR = "all-linear"

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
    ("q", "v"),
    ("project_q", "project_v"),
    ("Wq", "Wv"),
    ("query_proj", "value_proj"),
    # latent attention: keys and values come out of one layer, queries of one or of two
    ("q_b_proj", "kv_b_proj"),
    ("q_proj", "kv_b_proj"),
)

# These read the weights of their linear layers without calling them: `MultiheadAttention` always, the encoder layer
# in its fast path, which inference without gradients takes.
_READ_WEIGHTS_THEMSELVES = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def choose_layers(model: nn.Module, target_modules: str | Iterable[str] | None, *, trial: bool = True) -> list[str]:
    """Names of the layers of `model` that `target_modules` selects, in model order.

    The default and `all-linear` take those where an adapter acts as a change of the weight does; one that is named
    and does not is an error. Without a `trial` it is not asked how layers act, as far as only a forward shows it.

    Raises:
        InputError: nothing is selected, a weight is shared, or an adapter on a named layer would not act.
    """
    targets = [target_modules] if isinstance(target_modules, str) else target_modules and list(target_modules)
    candidates = candidate_layers(model)
    faults = {**_read_by_their_parents(model, candidates), **(faults_when_called(model, candidates) if trial else {})}
    sound = {name: layer for name, layer in candidates.items() if name not in faults}
    if targets is None:
        names = _default_layers(sound)
    elif targets == [ALL_LINEAR]:
        names = layers_of_blocks(model, sound)
        shared = {name for pair in aliased_weights(model, names) for name in pair}
        names = [name for name in names if name not in shared]
    else:
        names = match_layers(candidates, target_modules if isinstance(target_modules, str) else targets)
        _refuse(faults, names)
    for name, other in aliased_weights(model, names):
        raise InputError(f"target_modules: the weight of {name} is shared with {other} and cannot be merged into")
    faults = faults_when_changed(model, {name: candidates[name] for name in names}) if trial else {}
    if targets not in (None, [ALL_LINEAR]):
        _refuse(faults, names)
    chosen = [name for name in names if name not in faults]
    if not chosen:
        raise InputError(f"target_modules: {names[0]} {faults[names[0]]}, nor does any other layer act; name some")
    return chosen


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


def layers_of_blocks(model: nn.Module, candidates: dict[str, nn.Module]) -> list[str]:
    """The candidates inside the blocks of a model, routers left out; all but the output embeddings if it has no blocks.

    A block is a member of a list of modules. A router is told by what it gives: a number for each of the experts that
    stand beside it.

    Raises:
        InputError: there are none.
    """
    blocks = [
        f"{name}.{key}."
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for key in module._modules
    ]
    head = output_embeddings(model)
    inside = [name for name in candidates if any(name.startswith(block) for block in blocks)]
    chosen = [name for name in inside or candidates if candidates[name] is not head]
    chosen = [name for name in chosen if not _is_router(model, name)]
    if not chosen:
        raise InputError(f"target_modules={ALL_LINEAR}: no linear layer is called inside the blocks of this model")
    return chosen


def match_layers(candidates: dict[str, nn.Module], target_modules: str | Iterable[str]) -> list[str]:
    """Names among `candidates` that `target_modules` selects, in model order.

    Raises:
        InputError: a name, or the expression, selects none.
    """
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
    raise InputError(
        f"no default target_modules for this model: choose from {_summary(candidates)}, or take {ALL_LINEAR}"
    )


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


def _read_by_their_parents(model: nn.Module, names: Iterable[str]) -> Faults:
    parents = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    return {
        name: f"is part of nn.{type(parent).__name__}, which reads its weight and never calls it"
        for name, parent in parents.items()
        if isinstance(parent, _READ_WEIGHTS_THEMSELVES)
    }


def _refuse(faults: Faults, names: list[str]) -> None:
    wrong = [name for name in names if name in faults]
    if wrong:
        more = f" (and {len(wrong) - 1} more of the layers that were named)" if len(wrong) > 1 else ""
        raise InputError(f"target_modules: {wrong[0]} {faults[wrong[0]]}: an adapter there would have no effect{more}")


def output_embeddings(model: nn.Module) -> nn.Module | None:
    """What turns hidden states into scores of words; None for a model without."""
    find = getattr(model, "get_output_embeddings", None)
    try:
        return find() if find is not None else None
    except (AttributeError, NotImplementedError):
        return None


def _is_router(model: nn.Module, name: str) -> bool:
    """Whether a layer gives as many numbers as there are experts beside it."""
    layer, parent, child = model.get_submodule(name), name, name
    _, out_features = kind_of(layer).features(layer)
    stated = stated_experts(getattr(model, "config", None))
    if out_features < 2 or (stated is not None and out_features not in stated):
        return False
    while "." in parent:
        parent, child = parent.rpartition(".")[0], parent
        is_block = parent.rpartition(".")[2].isdigit()
        # attention stands beside the experts too, if only in the block; it has several layers
        if is_block and len(candidate_layers(model.get_submodule(child))) > 1:
            return False
        if out_features in set(_counts_of_experts(model.get_submodule(parent))):
            return True
        if is_block:
            return False
    return False


def stated_experts(config: Any) -> set[int] | None:
    """The numbers of experts that a configuration states, those of its parts among them; None without one."""
    if not hasattr(config, "to_dict"):
        return None
    counts, parts = set(), [config.to_dict()]
    while parts:
        for key, value in parts.pop().items():
            if isinstance(value, dict):
                parts.append(value)
            elif "expert" in str(key) and isinstance(value, int):
                counts.add(value)
    return counts


def _counts_of_experts(part: nn.Module) -> Iterator[int]:
    """The sizes of lists, and of the first dimension of weights that have three: what may be experts."""
    for module in part.modules():
        if isinstance(module, nn.ModuleList):
            yield len(module)
        elif not isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            yield from (weight.shape[0] for weight in module._parameters.values() if _has_three_dimensions(weight))


def _has_three_dimensions(weight: Tensor | None) -> bool:
    return weight is not None and weight.ndim == 3
