"""What a base layer consists of, whatever its kind: its tensors, and the device where they are."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from xgblora.adapters.repacked_weights import state_of


def device_of(base: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a layer that has none."""
    for tensors in (base.parameters(), base.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def stored_tensors(base: nn.Module) -> dict[str, Tensor]:
    """Every tensor that `base` consists of, by name, in the order of the names.

    Parameters and buffers, and what its `state_dict` has beside them: bitsandbytes keeps scales and tables there.
    Wrapper tensors (torchao) are given as the tensors that they hold.
    """
    found = {}
    for name, module in base.named_modules():
        own = {**module._parameters, **module._buffers, **state_of(module)}
        found |= {f"{name}.{key}" if name else key: value for key, value in own.items() if value is not None}
    parts = {name: part for key, value in found.items() for name, part in _parts(key, value)}
    return dict(sorted(parts.items()))


def rest_tensors(
    model: nn.Module, without: Iterable[str], ids: Iterable[int] = ()
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(module, what a checkpoint has of it by name) of all of `model` but what is trained; shared tensors once.

    Args:
        without: names of modules that are left out, with all that is in them.
        ids: Python's ids of tensors that are left out.
    """
    inside, seen = tuple(f"{name}." for name in without), set(ids)
    # what is made for a state dict alone is kept, or another tensor might get its id
    kept: list[Any] = []
    for name, module in model.named_modules():
        if f"{name}.".startswith(inside):
            continue
        # tables that are computed are not in it
        own = state_of(module)
        kept += own.values()
        new = {key: value for key, value in own.items() if id(value) not in seen}
        seen.update(map(id, own.values()))
        parts = {key: part for entry, value in new.items() for key, part in _parts(entry, value)}
        if parts:
            yield name, dict(sorted(parts.items()))


def _parts(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, (tuple, list)):
        for index, part in enumerate(value):
            yield from _parts(f"{name}.{index}", part)
    elif is_traceable_wrapper_subclass(value):
        for attribute in value.__tensor_flatten__()[0]:
            yield from _parts(f"{name}.{attribute}", getattr(value, attribute))
    elif isinstance(value, Tensor):
        yield name, value.detach()
