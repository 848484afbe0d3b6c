"""How the weights of a model lie in memory: row by row, column by column, in the same place. Knows no Triton."""

from itertools import pairwise

from torch import Tensor


def is_transposed(weight: Tensor) -> bool:
    """Whether `weight` [N, K] lies in memory as a contiguous [K, N], as the transpose of GPT-2's weights does."""
    return weight.dim() == 2 and weight.T.is_contiguous() and not weight.is_contiguous()


def share_memory(weights: list[Tensor]) -> bool:
    """Whether the address ranges of two of `weights` overlap, as those of tied weights do."""
    ranges = sorted((weight.data_ptr(), weight.data_ptr() + _span(weight)) for weight in weights if weight.numel())
    return any(end > start for (_, end), (start, _) in pairwise(ranges))


def _span(weight: Tensor) -> int:
    """Bytes from the first element of `weight` to behind its last one."""
    steps = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
    return (steps + 1) * weight.element_size()
