"""`cuda`: `merge_rank1_` on CUDA tensors by `xgblora._C`: every layer in one launch of the kernel in csrc/merge.cu.

Python writes a table of addresses and shapes, one row a weight; the kernel finds the layer of each tile in it. All
memory is torch's and comes from the current stream, on which the kernel runs, so none is given out again too early.
"""

import torch
from torch import Tensor

from xgblora.kernels.weight_storage import is_transposed, share_memory
from xgblora.ops.backends.backend import Backend
from xgblora.ops.eager import eager
from xgblora.ops.extension import DTYPE_CODES, extension

# the columns of `Layer` in csrc
_COLUMNS = 10


def merge_rank1_(
    weights: list[Tensor],
    a: list[Tensor],
    b: list[Tensor],
    remainders: list[Tensor],
    scale: float,
    rounding: str,
    seed: int,
) -> None:
    """Arguments and bits as of `torch.ops.xgblora.merge_rank1_`; all tensors on one CUDA device.

    Weights that lie neither row by row nor column by column are merged in a copy, which is written back. Weights that
    share memory are left to the eager reference, which merges one after the other. The table is copied from
    memory that is not pinned, so a call cannot be captured in a CUDA graph.

    Raises:
        RuntimeError: a CUDA error, by its name.
    """
    if share_memory(weights):
        eager("merge_rank1_")(weights, a, b, remainders, scale, rounding, seed)
        return
    transposed = [is_transposed(weight) for weight in weights]
    stored = [_as_stored(weight, turn) for weight, turn in zip(weights, transposed, strict=True)]
    dense = [matrix.contiguous() for matrix in stored]
    if rounding == "remainder":
        stored_remainders = [_as_stored(plane, turn) for plane, turn in zip(remainders, transposed, strict=True)]
        planes = [plane.contiguous() for plane in stored_remainders]
    else:
        stored_remainders = planes = []
    factors = [(of_a.float().contiguous(), of_b.float().contiguous()) for of_a, of_b in zip(a, b, strict=True)]
    _launch(dense, planes, factors, transposed, scale, rounding, seed)
    for target, source in zip(stored + stored_remainders, dense + planes, strict=True):
        if target.data_ptr() != source.data_ptr():
            target.copy_(source)


def _as_stored(matrix: Tensor, transposed: bool) -> Tensor:
    # the empty planes of fp32 weights are vectors
    return matrix.T if transposed and matrix.dim() == 2 else matrix


def _launch(
    dense: list[Tensor],
    planes: list[Tensor],
    factors: list[tuple[Tensor, Tensor]],
    transposed: list[bool],
    scale: float,
    rounding: str,
    seed: int,
) -> None:
    """Merge into contiguous matrices, [K, N] where `transposed`, with planes of their shape and fp32 factors."""
    rows = []
    for index, (matrix, (of_a, of_b), turn) in enumerate(zip(dense, factors, transposed, strict=True)):
        plane = planes[index].data_ptr() if planes else 0
        addresses = matrix.data_ptr(), plane, of_a.data_ptr(), of_b.data_ptr()
        # the last two columns are the plan's
        rows.append((*addresses, *matrix.shape, DTYPE_CODES[matrix.dtype], int(turn), 0, 0))
    table = torch.tensor(rows, dtype=torch.int64).view(-1, _COLUMNS)
    device = dense[0].device
    module = extension().module
    tiles = module.plan_merge(table.data_ptr(), len(rows))
    on_device = table.to(device, non_blocking=True)
    stream = torch.cuda.current_stream(device).cuda_stream
    module.merge_rank1(on_device.data_ptr(), len(rows), tiles, rounding, scale, seed, device.index, stream)


def obstacle(device_type: str) -> str | None:
    """Why the extension cannot run: it was not built, or the current GPU refuses its kernel."""
    if device_type == "cpu":
        return "it takes no CPU tensors"
    found = extension()
    if found.module is None:
        return found.state
    try:
        found.module.merge_facts("nearest", torch.cuda.current_device() if torch.cuda.is_available() else 0)
    except RuntimeError as error:
        # a GPU that the architectures leave out, a driver that is too old, no GPU
        return str(error)
    return None


def state() -> str:
    """What the extension was built with, or why it cannot be used."""
    return f"extension: {extension().state}"


BACKEND = Backend(
    name="cuda",
    title="the CUDA extension",
    device_types=("cuda",),
    modules={"merge_rank1_": __name__},
    obstacle=obstacle,
    state=state,
    variables=("XGBLORA_BUILD_CUDA", "XGBLORA_CUDA_ARCHS"),
)
