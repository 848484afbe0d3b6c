"""`triton`: every operation of CUDA tensors by `xgblora.kernels`; of CPU tensors by Triton's interpreter, for tests."""

import os

import torch
from torch import Tensor

from xgblora.environment import installed
from xgblora.kernels import tuning
from xgblora.ops.backends.backend import Backend


def obstacle(device_type: str) -> str | None:
    """Why the kernels cannot run here. A Triton that is missing says so itself when a kernel is imported."""
    if device_type != "cpu":
        return None
    if os.environ.get("TRITON_INTERPRET", "0") != "1":
        return "CPU tensors need TRITON_INTERPRET=1"
    if (0, 0) < _release_of("triton") < (3, 7) and _release_of("numpy") >= (2, 4):
        return "the interpreter of Triton before 3.7 does not run with NumPy 2.4; install another of the two"
    return None


def _release_of(package: str) -> tuple[int, int]:
    """(3, 6) of version 3.6.1; (0, 0) of what is not installed."""
    major, minor = (installed(package) or "0.0").split(".")[:2]
    return int(major), int(minor)


def reads_dots(x: Tensor, weight: Tensor) -> bool:
    """False for few rows, where one kernel makes the dots in its own K loop."""
    plan = tuning.plan_for("rank1_linear", x.device, x.dtype, x.shape[:-1].numel(), *weight.shape)
    return plan.path != tuning.FEW_ROWS


BACKEND = Backend(
    name="triton",
    title="Triton",
    device_types=("cuda",),
    modules={
        "row_dots": "xgblora.kernels.row_dot",
        "rank1_linear": "xgblora.kernels.rank1_linear",
        "rank1_linear_backward": "xgblora.kernels.rank1_linear",
        "row_dots_by_row": "xgblora.kernels.by_row",
        "rank1_linear_by_row": "xgblora.kernels.by_row",
        "rank1_linear_by_row_backward": "xgblora.kernels.by_row",
        "perturb": "xgblora.kernels.perturb",
        "update_": "xgblora.kernels.update",
        "merge_rank1_": "xgblora.kernels.merge_rank1",
        "merge_noise_": "xgblora.kernels.merge_noise",
    },
    obstacle=obstacle,
    variables=("TRITON_INTERPRET",),
    # in bf16 the interpreter of Triton 3.9 multiplies bit patterns
    unchecked={("cpu", torch.bfloat16): "the interpreter cannot"},
    reads_dots=reads_dots,
)
