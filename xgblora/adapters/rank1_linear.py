"""`Rank1Linear`: a frozen linear layer with a low-rank adapter beside it."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from xgblora.adapters.base_layer import device_of
from xgblora.adapters.kinds.registry import kind_of, names_of_kinds
from xgblora.adapters.shared_inputs import SharedInputs
from xgblora.errors import InputError
from xgblora.ops.low_rank_linear import low_rank_term
from xgblora.ops.noise import derive_seed, uniform


class Rank1Linear(nn.Module):
    """`base(x) + scale * (x a^T) b` with `scale = alpha / rank`, and the boosters of the bank where there is one.

    Rank 1 beside a base that only multiplies runs the fused operation; every other base computes its own forward, and
    the low-rank terms are added to the result in fp32. Usable alone (autograd included) or as part of an
    `AdapterSet`, whose arena then holds `a` and `b`.

    Args:
        base: the layer to adapt, of one of `xgblora.adapters.kinds`; its parameters are frozen.
        alpha: numerator of the scale, finite and positive.
        rank: 1 for XGBLoRA; larger for plain LoRA (Hu et al., 2021).
        seed: of `a`, which then starts as that of the first layer that `attach(..., seed=seed)` adapts; None leaves it
            zero, where an arena will hold it.

    Attributes:
        kind: what kind of layer `base` is.
        a: fp32 parameter [rank, in_features], at the start Kaiming-uniform noise of the seed (see `starting_a`).
        b: fp32 parameter [rank, out_features], zero at the start, so that the layer starts as `base`.
        live: None, or the pair of tensors ([G, rank, in_features], [G, rank, out_features]) that the forward reads in
            place of `a` and `b`: what a zeroth-order step perturbs. The rows of the input fall into G groups.
        group_of_row: None, or int32 [R], R a divisor of the input's M rows: they fall into no equal groups then, and
            entry r is the row of `live` that M / R neighbouring rows of the input read.
        bank: None, or the pair of fp32 tensors ([T, in_features], [T, out_features]) of boosters that are kept beside
            the weight because they cannot be merged into it: `base(x) + sum_t (x . a_t) b_t`, the same for all groups.
            Not parameters and not in the state dict: base + ledger gives them again.
        active: False runs the layer without `a` and `b`: they are zero, and not trained in this round.
        trains_a: False gives `a` no gradient.
        shared_inputs: None, or what computes for several layers at once that read the same input.
        move_storage: None, or what moves `a` and `b` to another device where they are views into a larger tensor.
        frozen_with: parameters that were frozen when this layer was attached; detaching lets them be trained again.
        detached: whether the model has `base` in its place again; then nothing that the adapter does is seen.

    The last four, `live` and `group_of_row` are given to the layer from outside; a copy of it stands alone and has
    none of them but `detached`.

    Raises:
        InputError: alpha or rank is out of range, or `base` is no linear layer.
    """

    def __init__(self, base: nn.Module, *, alpha: float, rank: int = 1, seed: int | None = 0):
        super().__init__()
        kind = kind_of(base)
        if kind is None:
            raise InputError(
                f"only linear layers can carry an adapter, not {type(base).__name__}: {', '.join(names_of_kinds())}"
            )
        self.kind = kind
        self.in_features, self.out_features = kind.features(base)
        self.scale = scale_of(alpha, rank)
        self.base = base.requires_grad_(False)
        options = {"dtype": torch.float32, "device": self.device}
        self.a = nn.Parameter(torch.zeros(rank, self.in_features, **options))
        if seed is not None:
            noise = uniform(derive_seed(seed, 0), self.a.numel(), device=self.a.device)
            self.a.data.copy_(starting_a(noise.view_as(self.a)))
        self.b = nn.Parameter(torch.zeros(rank, self.out_features, **options))
        self.live: tuple[Tensor, Tensor] | None = None
        self.group_of_row: Tensor | None = None
        self.bank: tuple[Tensor, Tensor] | None = None
        self.active = self.trains_a = True
        self.shared_inputs: SharedInputs | None = None
        self.move_storage: Callable[[torch.device], None] | None = None
        self.frozen_with: Sequence[nn.Parameter] = ()
        self.detached = False
        self._takes_merges = kind.takes_merges(base)

    @property
    def weight(self) -> Tensor:
        """The frozen base weight [out_features, in_features], a view of how it is stored.

        What a layer that is not mergeable calls its weight is given as it is (packed, or not at all).
        """
        return self.kind.weight_of(self.base)

    @property
    def matrices(self) -> tuple[Tensor, ...]:
        """The matrices [out_features, in_features] that merges write: `weight`, unless its kind has several.

        Each has its own rows of `a` and `b`, one matrix after the other.
        """
        return (self.weight,)

    @property
    def bias(self) -> Tensor | None:
        """The frozen base bias [out_features] or None."""
        return getattr(self.base, "bias", None)

    @property
    def device(self) -> torch.device:
        """Where the base lies; `a` and `b` lie where their arena is, which may be another device of the model."""
        return device_of(self.base)

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def mergeable(self) -> bool:
        """Whether a booster may be written into `weight`; if not, it goes into the bank."""
        return self._takes_merges and self.kind.has_dense_weight(self.base) and not self.weight.is_meta

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] to [..., out_features], in the dtype that the base gives (for most, that of `x`)."""
        base, kind = self.base, self.kind
        if not self.active and self.bank is None:
            return base(x)
        a, b = self.live if self.live is not None else self.own_group(x.device)
        if not self.trains_a:
            a = a.detach()
        if a.shape[1] == 1 and self.bank is None and kind.only_multiplies(base) and kind.has_dense_weight(base):
            weight = kind.weight_of(base)
            if self.group_of_row is not None:
                return torch.ops.xgblora.rank1_linear_by_row.default(
                    x, weight, base.bias, a[:, 0], b[:, 0], self.scale, self.group_of_row
                )
            # compiled code must not depend on what other layers did before
            alone = torch.compiler.is_compiling() or self.shared_inputs is None
            t = None if alone else self.shared_inputs.dots_for(self, x, weight)
            return torch.ops.xgblora.rank1_linear(x, weight, base.bias, a[:, 0], b[:, 0], self.scale, t)
        update = self.scale * low_rank_term(x, a, b, self.group_of_row) if self.active else 0.0
        if self.bank is not None:
            update = update + low_rank_term(x, *(part.unsqueeze(0) for part in self.bank))
        y = base(x)
        # the sum of a 16-bit and an fp32 tensor is fp32: one rounding for everything that is added
        return (y + update).to(y.dtype)

    def own_group(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The parameters as one group on `device`: [1, rank, in_features] and [1, rank, out_features]."""
        return self.a.unsqueeze(0).to(device), self.b.unsqueeze(0).to(device)

    @torch.no_grad()
    def extend_bank(self, a: Tensor, b: Tensor) -> None:
        """Append T boosters to the bank.

        Args:
            a: fp32 [T, in_features].
            b: fp32 [T, out_features], the boosters' scale multiplied in.

        Raises:
            InputError: shapes or dtypes do not fit.
        """
        terms = a.shape[:1]
        if a.shape != (*terms, self.in_features) or b.shape != (*terms, self.out_features):
            raise InputError(
                f"boosters a {tuple(a.shape)} and b {tuple(b.shape)} do not fit a layer of {self.in_features} inputs "
                f"and {self.out_features} outputs"
            )
        if a.dtype != torch.float32 or b.dtype != torch.float32:
            raise InputError(f"boosters in a bank are fp32, not {a.dtype} and {b.dtype}")
        none = torch.empty(0, 0, dtype=torch.float32, device=self.device)
        old_a, old_b = self.bank or (none.view(0, self.in_features), none.view(0, self.out_features))
        # `cat` copies: the bank is never a view into an arena or a ledger
        self.bank = torch.cat([old_a, a.to(old_a.device)]), torch.cat([old_b, b.to(old_b.device)])

    def clear_bank(self) -> None:
        """Drop all boosters of the bank."""
        self.bank = None

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}"

    def __getstate__(self):
        # copied or unpickled, a layer stands alone: its `a` and `b` are no views into a larger tensor
        given = {"live": None, "group_of_row": None, "shared_inputs": None, "move_storage": None, "frozen_with": ()}
        return {**self.__dict__, **given}

    def _apply(self, fn, recurse=True):
        # `model.to(...)` and `.half()` convert the base; adapters and bank stay fp32 and follow only to another device
        before = self.device
        self.base._apply(fn)
        device = self.device
        if self.bank is not None:
            self.bank = tuple(part.to(device) for part in self.bank)
        # not by that of `a`: of a model on several devices it may be another from the start
        if device != before:
            if self.move_storage is not None:
                self.move_storage(device)
            else:
                self.a.data, self.b.data = self.a.data.to(device), self.b.data.to(device)
        return self


def starting_a(noise: Tensor) -> Tensor:
    """`a` [rank, K] of an adapter that starts, from uniform noise of the same shape in (-1, 1).

    It lies in +-1/sqrt(K), as `nn.Linear` and LoRA start it (He et al., 2015, with a = sqrt(5)).
    """
    return noise * (1.0 / math.sqrt(max(noise.shape[-1], 1)))


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
