"""`host`: `perturb`, `update_`, the merges and rows that name their adapter, of CPU tensors, by `xgblora._host`.

C++ in one pass over memory. All but the last are as the eager reference, bit for bit. All run on
`torch.get_num_threads()` threads at most.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from xgblora.kernels.weight_storage import is_transposed
from xgblora.ops.backends.backend import Backend
from xgblora.ops.eager import eager
from xgblora.ops.extension import DTYPE_CODES
from xgblora.ops.host_extension import host_extension


def perturb(master: Tensor, live: Tensor, seeds: Tensor, eps: Tensor, signs: Tensor, distribution: str) -> None:
    """The noise is made once a seed and serves all signs; arguments as of `torch.ops.xgblora.perturb`."""
    seeds, signs = seeds.contiguous(), signs.contiguous()
    host_extension().module.perturb(
        master.data_ptr(),
        live.data_ptr(),
        DTYPE_CODES[live.dtype],
        master.numel(),
        signs.numel(),
        seeds.data_ptr(),
        seeds.numel(),
        eps.data_ptr(),
        signs.data_ptr(),
        distribution,
        torch.get_num_threads(),
    )


def update_(
    master: Tensor,
    seeds: Tensor,
    coefficients: Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    distribution: str,
    optimizer: str = "sgd",
    first: Tensor | None = None,
    second: Tensor | None = None,
    factors: Tensor | None = None,
) -> None:
    """The noise of every direction is made in passing; arguments as of `torch.ops.xgblora.update_`."""
    seeds, coefficients = seeds.contiguous(), coefficients.contiguous()
    host_extension().module.update(
        master.data_ptr(),
        master.numel(),
        seeds.data_ptr(),
        coefficients.data_ptr(),
        seeds.numel(),
        lr.data_ptr(),
        weight_decay.data_ptr(),
        distribution,
        optimizer,
        *(0 if tensor is None else tensor.data_ptr() for tensor in (first, second, factors)),
        torch.get_num_threads(),
    )


def merge_rank1_(
    weights: list[Tensor],
    a: list[Tensor],
    b: list[Tensor],
    remainders: list[Tensor],
    scale: float,
    rounding: str,
    seed: int,
) -> None:
    """One pass over each weight and its remainder; arguments as of `torch.ops.xgblora.merge_rank1_`.

    The reference itself rounds stochastically, and merges into weights that lie neither row by row nor by column.
    """
    if rounding == "stochastic":
        eager("merge_rank1_")(weights, a, b, remainders, scale, rounding, seed)
        return
    for index, weight in enumerate(weights):
        transposed = is_transposed(weight)
        storage = _storage(weight, remainders[index] if rounding == "remainder" else None, transposed)
        if storage is None:
            eager("merge_rank1_")(
                [weight], [a[index]], [b[index]], remainders[index : index + 1], scale, rounding, seed
            )
            continue
        # outputs first, as the reference multiplies; the product of two numbers is rounded the same either way round
        factors = [(b[index].float() * scale).contiguous(), a[index].float().contiguous()]
        of_rows, of_columns = reversed(factors) if transposed else factors
        host_extension().module.merge(*storage, of_rows.data_ptr(), of_columns.data_ptr(), torch.get_num_threads())


def merge_noise_(
    weights: list[Tensor],
    remainders: list[Tensor],
    a_starts: list[int],
    b_starts: list[int],
    seeds: Tensor,
    coefficients: Tensor,
    rounding: str,
    rounding_seed: int,
) -> None:
    """One pass over each weight, a tile at a time; arguments as of `torch.ops.xgblora.merge_noise_`.

    The reference itself does what it does in `merge_rank1_`.
    """
    if rounding == "stochastic":
        eager("merge_noise_")(weights, remainders, a_starts, b_starts, seeds, coefficients, rounding, rounding_seed)
        return
    seeds, coefficients = seeds.contiguous(), coefficients.contiguous()
    for index, (weight, a_start, b_start) in enumerate(zip(weights, a_starts, b_starts, strict=True)):
        transposed = is_transposed(weight)
        storage = _storage(weight, remainders[index] if rounding == "remainder" else None, transposed)
        if storage is None:
            one, its_starts = slice(index, index + 1), ([a_start], [b_start])
            eager("merge_noise_")([weight], remainders[one], *its_starts, seeds, coefficients, rounding, 0)
            continue
        places = (a_start, b_start, False) if transposed else (b_start, a_start, True)
        terms = seeds.data_ptr(), coefficients.data_ptr(), seeds.numel()
        host_extension().module.merge_noise(*storage, *places, *terms, torch.get_num_threads())


def _storage(weight: Tensor, plane: Tensor | None, transposed: bool) -> tuple[int, int, int, int, int] | None:
    """Addresses of a weight and its plane, dtype and shape, as they are stored; None where they have gaps."""
    parts = [weight] if plane is None or weight.dtype == torch.float32 else [weight, plane]
    stored = [part.T if transposed else part for part in parts]
    if not all(part.is_contiguous() for part in stored):
        return None
    addresses = [part.data_ptr() for part in stored] + [0] * (2 - len(stored))
    return *addresses, DTYPE_CODES[weight.dtype], *stored[0].shape


def row_dots_by_row(x: Tensor, a: list[Tensor], group_of_row: Tensor) -> Tensor:
    """One pass over the rows an adapter; arguments as of `torch.ops.xgblora.row_dots_by_row`."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    t = torch.empty((len(a), rows.shape[0]), dtype=torch.float32)
    for of_adapter, vectors in zip(t, a, strict=True):
        _row_terms(rows, None, vectors, vectors, 0.0, group_of_row, of_adapter, given=False)
    return t


def rank1_linear_by_row(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    group_of_row: Tensor,
    t: Tensor | None = None,
) -> Tensor:
    """The product, and one pass over x and y in place; arguments as of `torch.ops.xgblora.rank1_linear_by_row`.

    Unlike the others it sums in an order of its own, the same for a row whatever rows stand beside it.
    """
    y = F.linear(x, weight, bias).contiguous()
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    t = None if t is None else t.contiguous()
    _row_terms(rows, y, a, b, scale, group_of_row, t, given=t is not None)
    return y


def _row_terms(
    x: Tensor, y: Tensor | None, a: Tensor, b: Tensor, scale: float, group_of_row: Tensor, t: Tensor | None, given: bool
) -> None:
    """`x` [M, K] and `y` are contiguous, `a` and `b` of one dtype; without a `y` the dots alone are made, into `t`."""
    if b.dtype != a.dtype or a.dtype not in (x.dtype, torch.float32):
        a, b = a.float(), b.float()
    a, b = (vectors if vectors.stride(1) == 1 else vectors.contiguous() for vectors in (a, b))
    groups = group_of_row.contiguous()
    host_extension().module.row_terms(
        x.data_ptr(),
        0 if y is None else y.data_ptr(),
        DTYPE_CODES[x.dtype],
        *x.shape,
        b.shape[1],
        a.data_ptr(),
        b.data_ptr(),
        DTYPE_CODES[a.dtype],
        a.stride(0),
        b.stride(0),
        groups.data_ptr(),
        groups.numel(),
        a.shape[0],
        scale,
        0 if t is None else t.data_ptr(),
        given,
        torch.get_num_threads(),
    )


def obstacle(device_type: str) -> str | None:
    """Why the extension cannot run: its tensors are elsewhere, or it was not built."""
    if device_type != "cpu":
        return "it takes CPU tensors only"
    found = host_extension()
    return None if found.module is not None else found.state


def state() -> str:
    """What the extension was built with, or why it cannot be used."""
    return f"host extension: {host_extension().state}"


BACKEND = Backend(
    name="host",
    title="the host extension",
    device_types=("cpu",),
    modules=dict.fromkeys(
        ("perturb", "update_", "merge_rank1_", "merge_noise_", "row_dots_by_row", "rank1_linear_by_row"), __name__
    ),
    obstacle=obstacle,
    state=state,
    variables=("XGBLORA_BUILD_HOST",),
)
