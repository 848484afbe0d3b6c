"""`merge_rank1_` of CPU tensors by `xgblora._host`: one pass over each weight and its remainder."""

import torch
from torch import Tensor

from xgblora.kernels.weight_storage import is_transposed
from xgblora.ops.backend import eager
from xgblora.ops.extension import DTYPE_CODES
from xgblora.ops.host_extension import host_extension


def merge_rank1_(
    weights: list[Tensor],
    a: list[Tensor],
    b: list[Tensor],
    remainders: list[Tensor],
    scale: float,
    rounding: str,
    seed: int,
) -> None:
    """As the eager reference of `xgblora.ops.merge_rank1`, bit for bit, on `torch.get_num_threads()` threads at most.

    The reference itself rounds stochastically, and merges into weights that lie neither row by row nor by column.
    """
    if rounding == "stochastic":
        eager("merge_rank1_")(weights, a, b, remainders, scale, rounding, seed)
        return
    for index, weight in enumerate(weights):
        plane = remainders[index] if rounding == "remainder" and weight.dtype != torch.float32 else None
        turned = is_transposed(weight)
        stored, stored_plane = (matrix.T if turned and matrix is not None else matrix for matrix in (weight, plane))
        if not stored.is_contiguous() or not (stored_plane is None or stored_plane.is_contiguous()):
            eager("merge_rank1_")(
                [weight], [a[index]], [b[index]], remainders[index : index + 1], scale, rounding, seed
            )
            continue
        # outputs first, as the reference multiplies; the product of two numbers is rounded the same either way round
        factors = [(b[index].float() * scale).contiguous(), a[index].float().contiguous()]
        of_rows, of_columns = reversed(factors) if turned else factors
        host_extension().module.merge(
            stored.data_ptr(),
            0 if stored_plane is None else stored_plane.data_ptr(),
            DTYPE_CODES[weight.dtype],
            *stored.shape,
            of_rows.data_ptr(),
            of_columns.data_ptr(),
            torch.get_num_threads(),
        )
