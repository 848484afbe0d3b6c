"""Aliased weights: adapted weights that share memory with another module, which a merge would change too."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xgblora.adapters.kinds.registry import kind_of


@dataclass(frozen=True)
class _Span:
    """Memory that a tensor of a module covers: [start, end) in `space`, a device or, for objects, Python's ids."""

    space: str
    start: int
    end: int
    module: str
    is_target: bool


def aliased_weights(model: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs (a layer of `names`, another module) where the layer's weight and a tensor of the other share memory.

    Tied parameters, two parameters over one storage, and one layer under two names. Two tensors share memory where the
    ranges of their addresses overlap: interleaved views of one storage count as shared, too.
    """
    targets = set(names)
    # a module that is used under two names is listed twice
    modules = list(model.named_modules(remove_duplicate=False))
    spans = [span for name, module in modules for span in _spans(name, module, name in targets)]
    spans.sort(key=lambda span: (span.space, span.start, span.end))
    furthest = None
    for span in spans:
        overlaps = furthest is not None and span.space == furthest.space and span.start < furthest.end
        if overlaps and span.module != furthest.module:
            if span.is_target:
                yield span.module, furthest.module
            elif furthest.is_target:
                yield furthest.module, span.module
        if not overlaps or span.end > furthest.end:
            furthest = span


def _spans(name: str, module: nn.Module, is_target: bool) -> Iterator[_Span]:
    yield _Span("modules", id(module), id(module) + 1, name, is_target)
    written = kind_of(module).weight_name if is_target else None
    for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is not None and tensor.numel():
            # sharing a bias, a scale or a table does no harm: they are never written
            yield _Span(*_place(tensor), name, key == written)


def _place(tensor: Tensor) -> tuple[str, int, int]:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta or tensor.layout != torch.strided:
        # no address to compare; the same object is the same memory all the same
        return "objects", id(tensor), id(tensor) + 1
    elements = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return str(tensor.device), start, start + elements * tensor.element_size()
