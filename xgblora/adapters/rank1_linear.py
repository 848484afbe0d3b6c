"""`Rank1Linear`: a frozen linear layer with a low-rank adapter beside it."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from xgblora.errors import InputError
from xgblora.ops.low_rank_linear import low_rank_linear

if TYPE_CHECKING:
    from xgblora.adapters.arena import Arena


class Rank1Linear(nn.Module):
    """`base(x) + scale * (x a^T) b` with `scale = alpha / rank`; rank 1 runs the fused operation.

    Usable alone (autograd included) or as part of an `AdapterSet`, whose arena then holds `a` and `b`.

    Args:
        base: the layer to adapt; its weight and bias are frozen.
        alpha: numerator of the scale, finite and positive.
        rank: 1 for XGBLoRA; larger for plain LoRA (Hu et al., 2021).

    Attributes:
        a: fp32 parameter [rank, in_features], Kaiming-uniform at the start.
        b: fp32 parameter [rank, out_features], zero at the start, so that the layer starts as `base`.
        live: None, or the pair of tensors ([G, rank, in_features], [G, rank, out_features]) that the forward reads in
            place of `a` and `b`: what a zeroth-order step perturbs. The rows of the input fall into G groups.

    Raises:
        InputError: alpha or rank is out of range, or `base` is not an `nn.Linear`.
    """

    def __init__(self, base: nn.Linear, *, alpha: float, rank: int = 1):
        super().__init__()
        if not isinstance(base, nn.Linear):
            raise InputError(f"only nn.Linear layers can carry an adapter, not {type(base).__name__}")
        self.scale = scale_of(alpha, rank)
        self.base = base.requires_grad_(False)
        options = {"dtype": torch.float32, "device": base.weight.device}
        bound = 1.0 / math.sqrt(max(base.in_features, 1))
        self.a = nn.Parameter(torch.empty(rank, base.in_features, **options).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(rank, base.out_features, **options))
        self.live: tuple[Tensor, Tensor] | None = None
        self._arena: Arena | None = None

    @property
    def weight(self) -> Tensor:
        """The frozen base weight [out_features, in_features]."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen base bias [out_features] or None."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] to [..., out_features], in the dtype of `x`."""
        a, b = self.live if self.live is not None else (self.a.unsqueeze(0), self.b.unsqueeze(0))
        if a.shape[1] == 1:
            return torch.ops.xgblora.rank1_linear(x, self.weight, self.bias, a[:, 0], b[:, 0], self.scale)
        return low_rank_linear(x, self.weight, self.bias, a, b, self.scale)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}"

    def __getstate__(self):
        # copied or unpickled, a layer stands alone: its `a` and `b` are no views into an arena
        return {**self.__dict__, "_arena": None, "live": None}

    def _apply(self, fn, recurse=True):
        # `model.to(...)` and `.half()` convert the base; adapters stay fp32 and follow only to another device
        self.base._apply(fn)
        device = self.base.weight.device
        if device != self.a.device:
            if self._arena is not None:
                self._arena.move(device)
            else:
                self.a.data, self.b.data = self.a.data.to(device), self.b.data.to(device)
        return self


def scale_of(alpha: float, rank: int) -> float:
    """`alpha / rank`, after checking both.

    Raises:
        InputError: alpha is not a positive finite number, or rank is not a positive integer.
    """
    if not (isinstance(alpha, (int, float)) and math.isfinite(alpha) and alpha > 0):
        raise InputError(f"lora_alpha={alpha}: must be a positive finite number")
    if not isinstance(rank, int) or rank < 1:
        raise InputError(f"lora_r={rank}: must be a whole number, 1 or more")
    return alpha / rank
