"""The boosters of a run as two matrices a layer, and the nearest pair of a smaller rank."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from xgblora.adapters import Slot
from xgblora.boosting.ledger import Ledger
from xgblora.boosting.merged import MergedNoise
from xgblora.errors import InputError


@dataclass(frozen=True)
class Factors:
    """The update of one layer, `b^T a`: the sum of all boosters.

    Attributes:
        a: fp32 [R, K].
        b: fp32 [R, N], the scales folded in.
    """

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class TruncationCost:
    """What a truncation lost, as shares of Frobenius norms: 0 nothing, 1 everything.

    Attributes:
        by_layer: for each layer, the norm of what its update lost over the norm of the update.
        overall: the same of all updates taken together.
    """

    by_layer: dict[str, float]
    overall: float

    @property
    def worst_layer(self) -> str:
        """The layer that lost the largest share."""
        return max(self.by_layer, key=self.by_layer.__getitem__)


def adapter_factors(ledger: Ledger, rank: int | None = None) -> tuple[dict[str, Factors], TruncationCost | None]:
    """All boosters as the factors of one adapter, and what a smaller rank cost; None if nothing had to be cut off.

    Args:
        ledger: the boosters.
        rank: at most this rank, by the nearest adapter that has it.

    Raises:
        InputError: the ledger is empty or holds numbers that are not finite, rank is below 1, or there is none though a
            population's terms have a higher rank than any weight.
    """
    if not len(ledger):
        raise InputError("the ledger is empty: there is no booster to export")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise InputError(f"rank={rank}: must be a whole number, 1 or more")
    if rank is None:
        _refuse_more_rows_than_a_weight_has(ledger)
    factors = stacked_factors(ledger)
    for name, layer in factors.items():
        if not (layer.a.isfinite().all() and layer.b.isfinite().all()):
            raise InputError(f"the boosters of {name} are not finite: training diverged, export an earlier round")
    if rank is None or rank >= rank_of(factors):
        return factors, None
    return truncated(factors, rank)


def _refuse_more_rows_than_a_weight_has(ledger: Ledger) -> None:
    rank, fullest = (
        sum(term.count for term in ledger.terms()),
        max(min(s.in_features, s.out_features) for s in ledger.slots),
    )
    if rank > fullest and any(isinstance(booster, MergedNoise) for booster in ledger.boosters):
        raise InputError(
            f"the terms of a population have rank {rank}, and no weight has more than {fullest}: give a rank, by which "
            "the nearest adapter is taken, or export the merged model"
        )


def rank_of(factors: dict[str, Factors]) -> int:
    """The rank of stacked factors, the same for every layer."""
    return len(next(iter(factors.values())).a)


def stacked_factors(ledger: Ledger) -> dict[str, Factors]:
    """For each matrix the terms of the ledger one below the other: R is their number times the rank of each.

    A layer is one matrix, and the experts of a mixture are several: see `matrix_names`.
    """
    stacked: tuple[list[Tensor], list[float]] = ([], [])
    for term in ledger.terms():
        term.stack(*stacked, ledger.slots)
    rows, scales = torch.stack(stacked[0]), torch.tensor(stacked[1], dtype=torch.float32).view(-1, 1, 1)
    factors = {}
    for slot in ledger.slots:
        a, b = slot.views(rows)
        # (scale * b) * a, in this order, is what a merge computes
        a, b = (part.unflatten(1, (-1, ledger.origin.rank)) for part in (a, scales * b))
        for number, name in enumerate(matrix_names(slot, ledger.origin.rank)):
            factors[name] = Factors(*(part[:, number].flatten(0, 1).contiguous() for part in (a, b)))
    return factors


def matrix_names(slot: Slot, rank: int) -> list[str]:
    """The names of a layer's matrices, each of which has `rank` rows of the slot: the layer's own if it has one."""
    count = slot.rank // rank
    return [slot.name] if count == 1 else [f"{slot.name}.{number}" for number in range(count)]


def truncated(factors: dict[str, Factors], rank: int) -> tuple[dict[str, Factors], TruncationCost]:
    """The factors of rank `rank` that are nearest to `factors` in the Frobenius norm, and what they cost.

    The rows of the new `a` are orthonormal, those of the new `b` orthogonal, as long as the singular values that they
    belong to, largest first. Rows past the rank of a layer's update are zero.
    """
    new, lost, norms = {}, {}, {}
    for name, layer in factors.items():
        new[name], singular_values = _truncated_layer(layer, rank)
        lost[name], norms[name] = _norm(singular_values[rank:]), _norm(singular_values)
    by_layer = {name: _share(lost[name], norms[name]) for name in factors}
    return new, TruncationCost(by_layer, _share(math.hypot(*lost.values()), math.hypot(*norms.values())))


def _truncated_layer(layer: Factors, rank: int) -> tuple[Factors, Tensor]:
    """The nearest factors of rank `rank`, and all singular values of `b^T a`, fp64, largest first.

    With `a^T = Q_a R_a` and `b^T = Q_b R_b` the update is `Q_b (R_b R_a^T) Q_a^T`, and the singular values are those of
    the core in the middle, at most R x R; the N x K matrix itself is never made. Its largest `rank` singular values and
    vectors make the nearest matrix of that rank (Eckart and Young, 1936).
    """
    q_a, r_a = torch.linalg.qr(layer.a.double().T)
    q_b, r_b = torch.linalg.qr(layer.b.double().T)
    u, singular_values, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    kept = min(rank, len(singular_values))
    a, b = torch.zeros(rank, layer.a.shape[1]), torch.zeros(rank, layer.b.shape[1])
    a[:kept] = v[:kept] @ q_a.T
    b[:kept] = (q_b @ u[:, :kept] * singular_values[:kept]).T
    return Factors(a, b), singular_values


def _norm(values: Tensor) -> float:
    return torch.linalg.vector_norm(values).item()


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
