"""Check, on a device, that what runs there agrees with the eager reference: the same bits where the contract says so.

`rank1_linear` sums in an order of its own, so its rule is an error bound: against fp64 it must be under twice that of
eager code in the same dtype on the same device (the rule of quack, Dao-AILab).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xgblora.ops.backend import choose, eager
from xgblora.ops.merge_rank1 import ROUNDINGS, new_remainders
from xgblora.ops.noise import Stream, normal
from xgblora.ops.update import RULES

# rows, K, N, groups: one row, a few, a prefill, odd sizes
LINEAR_SHAPES = ((1, 64, 48, 1), (16, 256, 512, 2), (257, 129, 77, 1), (1024, 768, 768, 4))


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        operation, backend: what ran.
        case: dtype and shape.
        passed: whether the rule holds.
        detail: the figures behind it.
    """

    operation: str
    backend: str
    case: str
    passed: bool
    detail: str


def self_check(device: torch.device) -> list[Check]:
    """Compare every operation on `device` with its reference."""
    with torch.no_grad():
        return [
            *_check_perturb(device),
            *_check_update(device),
            *_check_merge(device),
            *_check_linear(device),
            *_check_linear_backward(device),
        ]


def _same_bits(operation: str, device: torch.device, case: str, ours: Tensor, reference: Tensor) -> Check:
    different = int((ours.cpu() != reference.cpu()).sum())
    detail = f"{different} of {reference.numel()} values differ"
    return Check(operation, choose(operation, device.type).backend, case, different == 0, detail)


def _check_perturb(device: torch.device) -> Iterator[Check]:
    seeds, signs = torch.tensor([3, -(2**40)]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    for size in (1, 1023, 100_003):
        master = _values(size)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for distribution in ("gaussian", "rademacher"):
                lives = []
                for place in (device, torch.device("cpu")):
                    live = torch.full((4, size), float("nan"), dtype=dtype, device=place)
                    arguments = (seeds.to(place), torch.tensor([1e-3], device=place), signs.to(place), distribution)
                    _on(place, "perturb")(master.to(place), live, *arguments)
                    lives.append(live)
                yield _same_bits("perturb", device, f"{_name(dtype)} [{size}] {distribution}", *lives)


def _check_update(device: torch.device) -> Iterator[Check]:
    for optimizer in RULES:
        for size in (1, 1023, 100_003):
            for count in (1, 3, 4):
                results = [_updated(place, optimizer, size, count) for place in (device, torch.device("cpu"))]
                yield _same_bits("update_", device, f"{optimizer} [{size}] q={count}", *results)


def _updated(place: torch.device, optimizer: str, size: int, count: int) -> Tensor:
    """The master and the moments of the optimizer, flat, after a step."""
    master = _values(size).to(place)
    seeds = torch.arange(count, device=place) - 1
    coefficients = (torch.arange(count, device=place) + 0.3) * 1.7
    lr, decay = torch.tensor([3e-4], device=place), torch.tensor([0.01], device=place)
    names, factors = RULES[optimizer]
    moments = {name: _values(size, seed=2).square().to(place) for name in names}
    numbers = torch.tensor([0.9, 0.1, 0.999, 0.001, 1e-8, 0.271, 0.003][:factors], device=place) if factors else None
    arguments = (master, seeds, coefficients, lr, decay, "gaussian", optimizer)
    _on(place, "update_")(*arguments, moments.get("first"), moments.get("second"), numbers)
    return torch.cat((master, *moments.values()))


def _check_merge(device: torch.device) -> Iterator[Check]:
    for rounding in ROUNDINGS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            results = [_merged(place, dtype, rounding) for place in (device, torch.device("cpu"))]
            for name, parts in zip(("weights", "remainders"), zip(*results, strict=True), strict=True):
                yield _same_bits("merge_rank1_", device, f"{_name(dtype)} {rounding}, {name}", *parts)


def _merged(place: torch.device, dtype: torch.dtype, rounding: str) -> tuple[Tensor, Tensor]:
    """All weights and all remainders, flat, after two merges into an odd, a transposed and a row-major weight."""
    shapes = ((33, 65), (96, 40), (128, 7))
    weights = [_values(*shape, seed=index).to(place, dtype) for index, shape in enumerate(shapes)]
    weights[1] = weights[1].T.contiguous().T
    a = [_values(columns, seed=3).to(place) for _, columns in shapes]
    b = [_values(rows, seed=4).to(place) for rows, _ in shapes]
    remainders = new_remainders(weights)
    for merge in range(2):
        _on(place, "merge_rank1_")(weights, a, b, remainders, 0.37, rounding, 11 + merge)
    return tuple(torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (weights, remainders))


def _check_linear(device: torch.device) -> Iterator[Check]:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for rows, inputs, outputs, groups in LINEAR_SHAPES:
            arguments = _linear_arguments(device, dtype, rows, inputs, outputs, groups)
            results = _three_ways("rank1_linear", device, arguments)
            yield _within_bound("rank1_linear", device, f"{_name(dtype)} {rows}x{inputs}x{outputs} G={groups}", results)


def _check_linear_backward(device: torch.device) -> Iterator[Check]:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for rows, inputs, outputs, groups in LINEAR_SHAPES:
            x, weight, _, a, b, scale = _linear_arguments(device, dtype, rows, inputs, outputs, groups)
            grad = _values(rows, outputs, seed=9).to(device, dtype)
            results = _three_ways("rank1_linear_backward", device, (grad, x, weight, a, b, scale, True))
            case = f"{_name(dtype)} {rows}x{inputs}x{outputs} G={groups}"
            for name, parts in zip(("dx", "da", "db"), zip(*results, strict=True), strict=True):
                yield _within_bound("rank1_linear_backward", device, f"{name} {case}", parts)


def _three_ways(operation: str, device: torch.device, arguments: tuple) -> tuple:
    """What runs on the device, eager on the device in the same dtype, and eager in fp64."""
    exact = tuple(value.double() if isinstance(value, Tensor) else value for value in arguments)
    return _on(device, operation)(*arguments), eager(operation)(*arguments), _in_double(operation, exact)


def _in_double(operation: str, arguments: tuple):
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


def _within_bound(operation: str, device: torch.device, case: str, results: tuple[Tensor, Tensor, Tensor]) -> Check:
    ours, reference, exact = results
    error = (ours - exact).abs().max().item()
    # the last term is for shapes with so few sums that eager code may be exact by chance
    bound = 2 * (reference - exact).abs().max().item() + 1e-6 * max(1.0, exact.abs().max().item())
    detail = f"error {error:.2e}, bound {bound:.2e}"
    return Check(operation, choose(operation, device.type).backend, case, error <= bound, detail)


def _linear_arguments(device: torch.device, dtype: torch.dtype, rows: int, inputs: int, outputs: int, groups: int):
    rows = -(-rows // groups) * groups
    x, weight = _values(rows, inputs).to(device, dtype), (_values(outputs, inputs, seed=2) * inputs**-0.5)
    bias = _values(outputs, seed=3).to(device, dtype)
    a, b = _values(groups, inputs, seed=4) * inputs**-0.5, _values(groups, outputs, seed=5)
    return x, weight.to(device, dtype), bias, a.to(device, dtype), b.to(device, dtype), 2.0


def _on(device: torch.device, operation: str) -> Callable:
    """The implementation for `device`; the reference itself on the CPU, whatever the environment says."""
    return eager(operation) if device.type == "cpu" else choose(operation, device.type).function


def _values(*shape: int, seed: int = 1) -> Tensor:
    return normal(seed, math.prod(shape), device=torch.device("cpu"), stream=Stream.INITIALISATION).view(shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
