"""`host`: `perturb`, `update_` and `merge_rank1_` of CPU tensors by `xgblora._host`, C++ in one pass over memory.

Each is as the eager reference, bit for bit, on `torch.get_num_threads()` threads at most.
"""

import torch
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
        plane = remainders[index] if rounding == "remainder" and weight.dtype != torch.float32 else None
        transposed = is_transposed(weight)
        stored, stored_plane = (matrix.T if transposed and matrix is not None else matrix for matrix in (weight, plane))
        if not stored.is_contiguous() or not (stored_plane is None or stored_plane.is_contiguous()):
            eager("merge_rank1_")(
                [weight], [a[index]], [b[index]], remainders[index : index + 1], scale, rounding, seed
            )
            continue
        # outputs first, as the reference multiplies; the product of two numbers is rounded the same either way round
        factors = [(b[index].float() * scale).contiguous(), a[index].float().contiguous()]
        of_rows, of_columns = reversed(factors) if transposed else factors
        host_extension().module.merge(
            stored.data_ptr(),
            0 if stored_plane is None else stored_plane.data_ptr(),
            DTYPE_CODES[weight.dtype],
            *stored.shape,
            of_rows.data_ptr(),
            of_columns.data_ptr(),
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
    modules=dict.fromkeys(("perturb", "update_", "merge_rank1_"), __name__),
    obstacle=obstacle,
    state=state,
    variables=("XGBLORA_BUILD_HOST",),
)
