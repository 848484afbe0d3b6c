"""Experts of a mixture, as transformers 5 keeps them: one parameter [E, N, K] or [E, K, N] for all, one layer for both.

A mixture calls no layer: it sorts its tokens by expert and multiplies each share by its expert's part of the parameter.
`xgblora.adapters.mixture` runs it so that each of its parameters is a layer of this kind, each expert a matrix of it,
with `rank` rows of `a` and `b` of its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xgblora.adapters.kinds.kind import LayerKind
from xgblora.adapters.rank1_linear import Rank1Linear, scale_of
from xgblora.ops.grouped_product import grouped_product


@dataclass(frozen=True)
class Routed:
    """Which rows of a layer's input are for which expert, sorted by expert.

    Attributes:
        experts: int64 [S], the expert of each row.
        ends: int32 [E], the number of rows up to the last one of each expert.
        tokens: int64 [S], the token that each row is of.
        count: M, the tokens of the forward.
    """

    experts: Tensor
    ends: Tensor
    tokens: Tensor
    count: int


class ExpertMatrices(nn.Module):
    """One parameter of a mixture as a layer: each row of the input times the matrix of its expert.

    Args:
        weight: [E, N, K], or [E, K, N] if `is_transposed`.
        bias: [E, N] or None.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, is_transposed: bool):
        super().__init__()
        self.weight, self.bias, self.is_transposed = weight, bias, is_transposed

    @property
    def matrices(self) -> Tensor:
        """[E, N, K], a view."""
        return self.weight.transpose(1, 2) if self.is_transposed else self.weight

    def forward(self, x: Tensor, routed: Routed) -> Tensor:
        """x [S, K] to [S, N]."""
        y = grouped_product(x, self.matrices.transpose(1, 2), routed.ends)
        return y if self.bias is None else y + self.bias[routed.experts]


class AdaptedExperts(Rank1Linear):
    """`ExpertMatrices` with an adapter an expert: `a` [E * rank, K] and `b` [E * rank, N], expert after expert."""

    def __init__(self, base: ExpertMatrices, *, alpha: float, rank: int = 1, seed: int | None = 0):
        super().__init__(base, alpha=alpha, rank=rank * len(base.weight), seed=seed)
        self.scale = scale_of(alpha, rank)

    @property
    def matrices(self) -> tuple[Tensor, ...]:
        return self.base.matrices.unbind()

    def forward(self, x: Tensor, routed: Routed) -> Tensor:
        """x [S, K] to [S, N]; the tokens of the forward fall into G groups, each with its own adapters."""
        y = self.base(x, routed)
        if not self.active:
            return y
        a, b = self.live if self.live is not None else self.own_group(x.device)
        if not self.trains_a:
            a = a.detach()
        experts = len(self.base.weight)
        # of each row its group and its expert
        if self.group_of_row is None:
            group = routed.tokens * len(a) // routed.count
        else:
            group = self.group_of_row[routed.tokens * len(self.group_of_row) // routed.count]
        which = group * experts + routed.experts
        a, b = (part.unflatten(1, (experts, -1)).flatten(0, 1)[which].float() for part in (a, b))
        dots = torch.einsum("sk,srk->sr", x.float(), a)
        return (y + self.scale * torch.einsum("sr,srn->sn", dots, b)).to(y.dtype)


def features(module: nn.Module) -> tuple[int, int] | None:
    """(K, N) of such a layer; else None."""
    return (module.matrices.shape[2], module.matrices.shape[1]) if isinstance(module, ExpertMatrices) else None


def always(module: nn.Module) -> bool:
    """Yes: a product with the parameter as it is."""
    return True


# PEFT adapts the parameter itself, see `xgblora.boosting.peft_adapter`
EXPERTS = LayerKind("experts of a mixture", features, takes_writes=always, fan_in_fan_out=False, layer=AdaptedExperts)
