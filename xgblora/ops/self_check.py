"""Check that what runs on a machine agrees with the reference: the same bits where the contract says so.

Backends are compared with eager code on the CPU. `rank1_linear` sums in an order of its own, so its rule is an
error bound: against fp64 it must be under twice that of eager code in the same dtype on the same device (the rule of
quack, Dao-AILab). Eager code itself is compared with its formulas in fp64, and its noise with published numbers.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from xgblora.ops.backends.registry import registry
from xgblora.ops.choice import available, choose
from xgblora.ops.eager import eager, operations
from xgblora.ops.exact_linear import by_row_arguments, in_double, linear_arguments, values
from xgblora.ops.merge_rank1 import ROUNDINGS, new_remainders
from xgblora.ops.noise import normal, philox4x32
from xgblora.ops.update import RULES
from xgblora.spelling import dtype_name, one_line

CPU = torch.device("cpu")
SIZES = (1, 1023, 100_003)
# rows, K, N, groups: one row, a few, a prefill, odd sizes
LINEAR_SHAPES = ((1, 64, 48, 1), (16, 256, 512, 2), (257, 129, 77, 1), (1024, 768, 768, 4))
SMALL_SIZES, SMALL_LINEAR_SHAPES = (1, 1023), ((1, 64, 48, 1), (16, 65, 77, 2))
BY_ROW = ("row_dots_by_row", "rank1_linear_by_row", "rank1_linear_by_row_backward")
LINEAR_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Random123's known answers of philox4x32-10: counter, key, words
KNOWN_WORDS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        operation, backend: what ran.
        case: dtype and shape.
        passed: whether the rule holds.
        detail: the figures behind it.
        largest_error: the largest absolute difference from what the rule compares with.
        where: of a check that failed, where that difference is, and both values.
    """

    operation: str
    backend: str
    case: str
    passed: bool
    detail: str
    largest_error: float | None = None
    where: str | None = None


@dataclass(frozen=True)
class Tested:
    """What is compared with the reference.

    Attributes:
        device: where it runs.
        functions: by operation, the name of its backend and the implementation.
        sizes, linear_shapes, linear_dtypes: of the cases.
    """

    device: torch.device
    functions: dict[str, tuple[str, Callable]]
    sizes: tuple[int, ...] = SIZES
    linear_shapes: tuple[tuple[int, int, int, int], ...] = LINEAR_SHAPES
    linear_dtypes: tuple[torch.dtype, ...] = LINEAR_DTYPES

    def on(self, operation: str) -> Callable:
        """The implementation of `operation`."""
        return self.functions[operation][1]


def self_check(device: torch.device) -> list[Check]:
    """Compare every operation, as it is chosen on `device`, with its reference."""
    choices = [choose(operation, device.type) for operation in operations()]
    return check(Tested(device, {choice.operation: (choice.backend, choice.function) for choice in choices}))


@dataclass(frozen=True)
class BackendChecks:
    """What one backend came to on one device.

    Attributes:
        checks: the comparisons of all operations that it can run there.
        unchecked: what could not be compared and why, a line each.
    """

    checks: list[Check]
    unchecked: list[str]


def check_backends(device: torch.device) -> Iterator[BackendChecks]:
    """Compare every operation of every backend on `device` with its reference; on a GPU eager code too."""
    found = {operation: available(operation, device.type) for operation in operations()}
    for name in registry().backends if device == CPU else ("eager", *registry().backends):
        yield _check_backend(name, device, {one: those[name] for one, those in found.items() if name in those})


def _check_backend(name: str, device: torch.device, found: dict[str, Callable | str]) -> BackendChecks:
    functions = {operation: (name, one) for operation, one in found.items() if not isinstance(one, str)}
    obstacles = sorted({one for one in found.values() if isinstance(one, str)})
    place = f"{name} on {device.type}"
    unchecked = [f"{place}: not checked, {why}" for why in obstacles]
    left_out = _left_out(name, device.type) if functions else {}
    unchecked += [f"rank1_linear, {place}, {dtype_name(dtype)}: not checked, {why}" for dtype, why in left_out.items()]
    dtypes = tuple(dtype for dtype in LINEAR_DTYPES if dtype not in left_out)
    # a CPU may be the interpreter of Triton, which takes seconds for the others
    sizes = (SMALL_SIZES, SMALL_LINEAR_SHAPES) if device == CPU else (SIZES, LINEAR_SHAPES)
    return BackendChecks(check(Tested(device, functions, *sizes, dtypes)), unchecked)


def _left_out(name: str, device_type: str) -> dict[torch.dtype, str]:
    """The dtypes of layers that a backend has no checks of on a device type, and why."""
    unchecked = registry().backends[name].unchecked if name in registry().backends else {}
    return {dtype: why for (place, dtype), why in unchecked.items() if place == device_type}


def check(tested: Tested) -> list[Check]:
    """Compare implementations with the reference; one that raises has failed, and the others are compared."""
    results: list[Check] = []
    for operation, (backend, function) in tested.functions.items():
        try:
            results += comparisons(replace(tested, functions={operation: (backend, function)}))
        except Exception as error:  # a kernel's, a driver's, another package's
            results.append(Check(operation, backend, "any", False, one_line(error, kind=True, limit=300)))
    return results


def comparisons(tested: Tested) -> Iterator[Check]:
    """Compare implementations with the reference, one result after the other; what an implementation raises passes."""
    for operation, compare in _COMPARISONS.items():
        if operation in tested.functions:
            with torch.no_grad():
                yield from compare(tested)


def check_eager() -> list[Check]:
    """Compare eager code on the CPU with its formulas in fp64, its noise with published numbers."""
    with torch.no_grad():
        words = all(
            philox4x32(torch.tensor(counter).unsqueeze(1), torch.tensor(key)).flatten().tolist() == list(known)
            for counter, key, known in KNOWN_WORDS
        )
        noise = Check("noise", "eager", "philox4x32-10", words, "the known answers of Random123")
        return [noise, *_check_eager_arena(), *_check_eager_layers()]


def _check_eager_arena() -> Iterator[Check]:
    master, eps, seeds = values(1023), 1e-3, torch.tensor([3, -(2**40)])
    z = torch.stack([normal(int(seed), 1023, device=CPU) for seed in seeds]).double()
    live = torch.empty(4, 1023)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    eager("perturb")(master, live, seeds, torch.tensor([eps]), signs, "gaussian")
    exact = master.double() + eps * signs.double().unsqueeze(1) * z.repeat_interleave(2, dim=0)
    yield _near("perturb", live, exact)
    coefficients, lr, decay = torch.tensor([0.3, -1.7]), 0.1, 0.01
    stepped = master.clone()
    numbers = (torch.tensor([lr]), torch.tensor([decay]))
    eager("update_")(stepped, seeds, coefficients, *numbers, "gaussian", "sgd", None, None, None)
    gradient = (coefficients.double().unsqueeze(1) * z).mean(dim=0)
    yield _near("update_", stepped, master.double() - lr * (gradient + decay * master.double()))


def _check_eager_layers() -> Iterator[Check]:
    weight, a, b = values(33, 65), values(65, seed=3), values(33, seed=4)
    merged = weight.clone()
    eager("merge_rank1_")([merged], [a], [b], new_remainders([merged]), 0.37, "nearest", 11)
    yield _near("merge_rank1_", merged, weight.double() + 0.37 * torch.outer(b.double(), a.double()))
    summed, z = weight.clone(), normal(7, 98, device=CPU).double()
    eager("merge_noise_")([summed], [], [0], [65], torch.tensor([7]), torch.tensor([0.37]), "nearest", 11)
    yield _near("merge_noise_", summed, weight.double() + 0.37 * torch.outer(z[65:], z[:65]))
    x, weight, bias, a, b, scale = linear_arguments(CPU, torch.float32, 16, 65, 77, 2)
    grad = values(16, 77, seed=9)
    for operation, arguments in (
        ("row_dots", (x, [a, -a])),
        ("rank1_linear", (x, weight, bias, a, b, scale)),
        ("rank1_linear_backward", (grad, x, weight, a, b, scale, True)),
        *((name, by_row_arguments(name, CPU, torch.float32, (16, 65, 77, 2))) for name in BY_ROW),
    ):
        ours, exact = eager(operation)(*arguments), in_double(operation, arguments)
        pairs = [(ours, exact)] if isinstance(ours, Tensor) else zip(ours, exact, strict=True)
        for one, other in pairs:
            yield _near(operation, one, other)


def _near(operation: str, ours: Tensor, exact: Tensor) -> Check:
    error = ((ours - exact).abs().max() / exact.abs().max()).item()
    return Check(operation, "eager", "float32", error < 1e-5, f"relative error {error:.1e} against fp64")


def _same_bits(operation: str, tested: Tested, case: str, ours: Tensor, reference: Tensor) -> Check:
    if ours.shape != reference.shape:
        shapes = f"shape {tuple(ours.shape)}, not {tuple(reference.shape)}"
        return Check(operation, tested.functions[operation][0], case, False, shapes)
    different = int((ours.cpu() != reference.cpu()).sum())
    detail = f"{different} of {reference.numel()} values differ"
    largest = largest_difference(ours, reference) if different else (0.0, None)
    return Check(operation, tested.functions[operation][0], case, different == 0, detail, *largest)


def largest_difference(ours: Tensor, reference: Tensor) -> tuple[float, str]:
    """The largest absolute difference, and where it is, with both values; a value that is not finite counts most."""
    one, other = ours.detach().cpu().double(), reference.detach().cpu().double()
    # what is equal differs by nothing, two infinities too
    differences = torch.where(one == other, 0.0, (one - other).abs()).nan_to_num(nan=math.inf)
    index = torch.unravel_index(differences.argmax(), differences.shape)
    place = [int(one) for one in index]
    return float(differences[index]), f"at {place}: {float(one[index]):.9g}, not {float(other[index]):.9g}"


def _check_perturb(tested: Tested) -> Iterator[Check]:
    seeds, signs = torch.tensor([3, -(2**40)]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    for size in tested.sizes:
        master = values(size)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for distribution in ("gaussian", "rademacher"):
                lives = []
                for side in (tested, REFERENCE):
                    place = side.device
                    live = torch.full((4, size), float("nan"), dtype=dtype, device=place)
                    arguments = (seeds.to(place), torch.tensor([1e-3], device=place), signs.to(place), distribution)
                    side.on("perturb")(master.to(place), live, *arguments)
                    lives.append(live)
                yield _same_bits("perturb", tested, f"{dtype_name(dtype)} [{size}] {distribution}", *lives)


def _check_update(tested: Tested) -> Iterator[Check]:
    for optimizer in RULES:
        for size in tested.sizes:
            for count in (1, 3, 4):
                results = [_updated(side, optimizer, size, count) for side in (tested, REFERENCE)]
                yield _same_bits("update_", tested, f"{optimizer} [{size}] q={count}", *results)


def _updated(side: Tested, optimizer: str, size: int, count: int) -> Tensor:
    """The master and the moments of the optimizer, flat, after a step."""
    place = side.device
    master = values(size).to(place)
    seeds = torch.arange(count, device=place) - 1
    coefficients = (torch.arange(count, device=place) + 0.3) * 1.7
    lr, decay = torch.tensor([3e-4], device=place), torch.tensor([0.01], device=place)
    names, factors = RULES[optimizer]
    moments = {name: values(size, seed=2).square().to(place) for name in names}
    numbers = torch.tensor([0.9, 0.1, 0.999, 0.001, 1e-8, 0.271, 0.003][:factors], device=place) if factors else None
    arguments = (master, seeds, coefficients, lr, decay, "gaussian", optimizer)
    side.on("update_")(*arguments, moments.get("first"), moments.get("second"), numbers)
    return torch.cat((master, *moments.values()))


def _check_merge(operation: str, tested: Tested) -> Iterator[Check]:
    for rounding in ROUNDINGS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            results = [_merged(side, operation, dtype, rounding) for side in (tested, REFERENCE)]
            for name, parts in zip(("weights", "remainders"), zip(*results, strict=True), strict=True):
                yield _same_bits(operation, tested, f"{dtype_name(dtype)} {rounding}, {name}", *parts)


def _merged(side: Tested, operation: str, dtype: torch.dtype, rounding: str) -> tuple[Tensor, Tensor]:
    """All weights and all remainders, flat, after two merges into an odd, a transposed and a row-major weight."""
    place = side.device
    shapes = ((33, 65), (96, 40), (128, 7))
    weights = [values(*shape, seed=index).to(place, dtype) for index, shape in enumerate(shapes)]
    weights[1] = weights[1].T.contiguous().T
    remainders = new_remainders(weights)
    if operation == "merge_noise_":
        terms = torch.arange(5, device=place) - 2, torch.linspace(-1, 1, 5).to(place)
        arguments = (weights, remainders, [0, 300, 500], [100, 400, 700], *terms)
    else:
        a = [values(columns, seed=3).to(place) for _, columns in shapes]
        b = [values(rows, seed=4).to(place) for rows, _ in shapes]
        arguments = (weights, a, b, remainders, 0.37)
    for merge in range(2):
        side.on(operation)(*arguments, rounding, 11 + merge)
    return tuple(torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (weights, remainders))


def _check_row_dots(tested: Tested) -> Iterator[Check]:
    for dtype in tested.linear_dtypes:
        for rows, inputs, outputs, groups in tested.linear_shapes:
            x, _, _, a, _, _ = linear_arguments(tested.device, dtype, rows, inputs, outputs, groups)
            case = f"{dtype_name(dtype)} {rows}x{inputs} G={groups}"
            yield _within_bound("row_dots", tested, case, _three_ways("row_dots", tested, (x, [a, 2 * a, -a])))
            alone, together = (tested.on("row_dots")(x, adapters) for adapters in ([a], [2 * a, -a, a]))
            yield _same_bits("row_dots", tested, f"{case}, alone and beside others", together[2], alone[0])


def _check_linear(tested: Tested) -> Iterator[Check]:
    for dtype in tested.linear_dtypes:
        for rows, inputs, outputs, groups in tested.linear_shapes:
            arguments = linear_arguments(tested.device, dtype, rows, inputs, outputs, groups)
            results = _three_ways("rank1_linear", tested, arguments)
            yield _within_bound(
                "rank1_linear", tested, f"{dtype_name(dtype)} {rows}x{inputs}x{outputs} G={groups}", results
            )


def _check_linear_backward(tested: Tested) -> Iterator[Check]:
    for dtype in tested.linear_dtypes:
        for rows, inputs, outputs, groups in tested.linear_shapes:
            x, weight, _, a, b, scale = linear_arguments(tested.device, dtype, rows, inputs, outputs, groups)
            grad = values(rows, outputs, seed=9).to(tested.device, dtype)
            results = _three_ways("rank1_linear_backward", tested, (grad, x, weight, a, b, scale, True))
            case = f"{dtype_name(dtype)} {rows}x{inputs}x{outputs} G={groups}"
            for name, parts in zip(("dx", "da", "db"), zip(*results, strict=True), strict=True):
                yield _within_bound("rank1_linear_backward", tested, f"{name} {case}", parts)


def _check_by_row(operation: str) -> Callable[[Tested], Iterator[Check]]:
    def compare(tested: Tested) -> Iterator[Check]:
        for dtype in tested.linear_dtypes:
            for rows, inputs, outputs, groups in tested.linear_shapes:
                arguments = by_row_arguments(operation, tested.device, dtype, (rows, inputs, outputs, groups))
                parts = (_parts(result) for result in _three_ways(operation, tested, arguments))
                for name, results in zip(("", " da", " db"), zip(*parts, strict=True), strict=False):
                    case = f"{dtype_name(dtype)} {rows}x{inputs}x{outputs} G={groups}{name}"
                    yield _within_bound(operation, tested, case, results)

    return compare


def _parts(result: Tensor | tuple) -> tuple:
    return (result,) if isinstance(result, Tensor) else result


def _three_ways(operation: str, tested: Tested, arguments: tuple) -> tuple:
    """What runs on the device, eager on the device in the same dtype, and eager in fp64."""
    exact = in_double(operation, arguments)
    return tested.on(operation)(*arguments), eager(operation)(*arguments), exact


def _within_bound(operation: str, tested: Tested, case: str, results: tuple[Tensor, Tensor, Tensor]) -> Check:
    ours, reference, exact = results
    if ours.shape != exact.shape:
        shapes = f"shape {tuple(ours.shape)}, not {tuple(exact.shape)}"
        return Check(operation, tested.functions[operation][0], case, False, shapes)
    error = (ours - exact).abs().max().item()
    # the last term is for shapes with so few sums that eager code may be exact by chance
    bound = 2 * (reference - exact).abs().max().item() + 1e-6 * max(1.0, exact.abs().max().item())
    detail, backend = f"error {error:.2e}, bound {bound:.2e}", tested.functions[operation][0]
    if error <= bound:
        return Check(operation, backend, case, True, detail, error)
    return Check(operation, backend, case, False, detail, *largest_difference(ours, exact))


REFERENCE = Tested(CPU, {operation: ("eager", eager(operation)) for operation in operations()})
_COMPARISONS = {
    "perturb": _check_perturb,
    "update_": _check_update,
    "merge_rank1_": partial(_check_merge, "merge_rank1_"),
    "merge_noise_": partial(_check_merge, "merge_noise_"),
    "row_dots": _check_row_dots,
    "rank1_linear": _check_linear,
    "rank1_linear_backward": _check_linear_backward,
    **{name: _check_by_row(name) for name in BY_ROW},
}
