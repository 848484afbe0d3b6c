"""The linear operations in fp64, one row at a time, and numbers to try them on: what `self_check` compares with."""

import math
from typing import Any

import torch
from torch import Tensor

from xgblora.ops.noise import Stream, normal


def in_double(operation: str, arguments: tuple):
    """What `operation` gives of `arguments`, of any dtype, in fp64."""
    return _in_double(operation, _doubled(arguments))


def _in_double(operation: str, arguments: tuple):
    if operation == "row_dots_by_row":
        x, adapters, index = arguments
        return _in_double("row_dots", (x, [a[index] for a in adapters]))
    if operation == "rank1_linear_by_row":
        x, weight, bias, a, b, scale, index = arguments
        return _in_double("rank1_linear", (x, weight, bias, a[index], b[index], scale))
    if operation == "rank1_linear_by_row_backward":
        grad, x, weight, a, b, scale, index, _ = arguments
        dx, *of_rows = _in_double("rank1_linear_backward", (grad, x, weight, a[index], b[index], scale, True))
        sums = (torch.zeros_like(like).index_add_(0, index, of) for like, of in zip((a, b), of_rows, strict=True))
        return dx, *sums
    if operation == "row_dots":
        x, adapters = arguments
        return torch.stack([(x.view(len(a), -1, x.shape[-1]) * a.unsqueeze(1)).sum(2).flatten() for a in adapters])
    if operation == "rank1_linear":
        x, weight, bias, a, b, scale = arguments
        projected = (x.view(a.shape[0], -1, x.shape[-1]) * a.unsqueeze(1)).sum(2, keepdim=True)
        return x @ weight.T + bias + (scale * projected * b.unsqueeze(1)).view(x.shape[0], -1)
    grad, x, weight, a, b, scale, _ = arguments
    x_groups, grad_groups = x.view(a.shape[0], -1, x.shape[-1]), grad.view(a.shape[0], -1, grad.shape[-1])
    t = (x_groups * a.unsqueeze(1)).sum(2, keepdim=True)
    u = (grad_groups * b.unsqueeze(1)).sum(2, keepdim=True)
    dx = grad @ weight + (scale * u * a.unsqueeze(1)).view(x.shape)
    return dx, scale * (u * x_groups).sum(1), scale * (t * grad_groups).sum(1)


def _doubled(arguments: Any) -> Any:
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(map(_doubled, arguments))
    return arguments.double() if isinstance(arguments, Tensor) and arguments.is_floating_point() else arguments


def linear_arguments(device: torch.device, dtype: torch.dtype, rows: int, inputs: int, outputs: int, groups: int):
    """x, weight, bias, a, b and scale of `rank1_linear`, of at least `rows` rows."""
    rows = -(-rows // groups) * groups
    x, weight = values(rows, inputs).to(device, dtype), (values(outputs, inputs, seed=2) * inputs**-0.5)
    bias = values(outputs, seed=3).to(device, dtype)
    a, b = values(groups, inputs, seed=4) * inputs**-0.5, values(groups, outputs, seed=5)
    return x, weight.to(device, dtype), bias, a.to(device, dtype), b.to(device, dtype), 2.0


def values(*shape: int, seed: int = 1) -> Tensor:
    """Standard normals, fp32 of this shape."""
    return normal(seed, math.prod(shape), device=torch.device("cpu"), stream=Stream.INITIALISATION).view(shape)


def by_row_arguments(operation: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple:
    """Arguments of one of the operations by row; `shape` is (rows, inputs, outputs, groups)."""
    x, weight, bias, a, b, scale = linear_arguments(device, dtype, *shape)
    # every adapter, in no order
    groups = (torch.arange(x.shape[0], device=device) * 5 % (shape[3] + 1) % shape[3]).to(torch.int32)
    if operation == "row_dots_by_row":
        return x, [a, -a], groups
    if operation == "rank1_linear_by_row":
        return x, weight, bias, a, b, scale, groups
    grad = values(x.shape[0], shape[2], seed=9).to(device, dtype)
    return grad, x, weight, a, b, scale, groups, True
