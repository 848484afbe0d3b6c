"""`FullParameters`: all parameters of a model as what a zeroth-order run trains, as MeZO (Malladi et al. 2023) does.

The parameters become views into one flat row `live`, and an fp32 `master` lies beside it. MeZO itself adds the noise to
the weights, subtracts it twice and adds it again, which needs no second copy and drifts (12% rms after 1,000 steps at
learning rate zero in bf16); here a perturbed row is written out of place from `master`, so that restoring is exact and
small updates of 16-bit weights are not rounded away. The price is 4 bytes a parameter beside the weights, and nothing
else on a GPU: memory of inference plus `master`, 6 bytes a parameter in bf16 and 8 in fp32.

There is one row, because a model cannot hold two values of a weight at once: the forwards of a step come one after the
other, each with its row written just before it.
"""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xgblora import ops
from xgblora.adapters.arena import ALIGNMENT
from xgblora.adapters.base_layer import rest_tensors
from xgblora.adapters.identity import origin_of
from xgblora.adapters.kinds.registry import kind_of
from xgblora.adapters.origin import Origin
from xgblora.adapters.rank1_linear import Rank1Linear
from xgblora.adapters.targets import candidate_layers
from xgblora.errors import InputError
from xgblora.ops.merge_rank1 import WEIGHT_DTYPES


@dataclass(frozen=True)
class ParameterSlot:
    """Where one parameter lies: at `[start, start + its elements)`, in row-major order."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """Where it ends."""
        return self.start + math.prod(self.shape)

    def view(self, row: Tensor) -> Tensor:
        """The view into `row` [P] that has the parameter's shape."""
        return row[self.start : self.stop].view(self.shape)


class ParameterArena:
    """Storage of a model's parameters: a `TrainableArena` of one row.

    Args:
        parameters: by name, of one dtype, on one device; from now on views into `live`.
    """

    stacks = False

    def __init__(self, parameters: dict[str, nn.Parameter]):
        self._parameters = parameters
        self.slots = _lay_out(parameters)
        first = next(iter(parameters.values()))
        size = -(-self.slots[-1].stop // ALIGNMENT) * ALIGNMENT
        self.live = torch.zeros(1, size, dtype=first.dtype, device=first.device)
        for slot, parameter in zip(self.slots, parameters.values(), strict=True):
            place = slot.view(self.live[0])
            place.copy_(parameter.data)
            parameter.data = place
        # after the old storage of the parameters is free
        self.master = self.live[0].to(torch.float32, copy=True)
        self.moments: dict[str, Tensor] = {}
        self._rows: tuple[Tensor, Tensor, Tensor, str] | None = None

    def allocate_live(self, groups: int, dtype: torch.dtype) -> Tensor:
        """The one row there is, whatever `groups`; `dtype` is that of the parameters."""
        self.restore()
        return self.live

    def perturb(self, seeds: Tensor, eps: Tensor, signs: Tensor, distribution: str) -> None:
        """Remember the rows of a step; `read_live` writes them.

        Raises:
            InputError: the parameters are no longer views into `live`.
        """
        first = next(iter(self._parameters.values()))
        if first.data_ptr() != self.live.data_ptr():
            raise InputError("the model was moved or converted after FullParameters(model): do that before")
        self._rows = seeds, eps, signs, distribution

    def read_live(self, start: int, stop: int) -> None:
        """Write row `start` of the step into the parameters; `stop` is `start + 1`."""
        if self._rows is None or stop != start + 1:
            raise ValueError(f"rows {start} to {stop}: parameters hold one row of a perturbed step at a time")
        seeds, eps, signs, distribution = self._rows
        seed = start // (signs.numel() // seeds.numel())
        ops.perturb(
            self.master,
            self.live,
            seeds[seed : seed + 1],
            eps,
            signs[start : start + 1],
            distribution=distribution,
        )

    def while_unchanged(self) -> nullcontext:
        """Nothing is kept between layers."""
        return nullcontext()

    def read_one_row(self) -> None:
        """There is but one."""

    def restore(self) -> None:
        """Write the cast of `master` into the parameters: exact, whatever they held."""
        self.live.copy_(self.master)
        self._rows = None

    def kept(self) -> nullcontext:
        """Nothing is to come back: all parameters are trained."""
        return nullcontext()

    def forget_moments(self) -> None:
        """Set the moments to zero, in place."""
        for moment in self.moments.values():
            moment.zero_()


class FullParameters:
    """The trainable parameters of a model, to be given to `ZeroOrder` in place of adapters.

    A parameter that several modules share (tied embeddings) is one parameter. Frozen parameters and buffers stay as
    they are. The model stays an ordinary one that can be saved and used at any time; to move it or to change its dtype
    is to be done before.

    Args:
        model: any module whose parameters are plain fp32, bf16 or fp16 tensors.
        seed: kept for the record; nothing is initialised.

    Raises:
        InputError: the model has adapters, quantised or packed weights, parameters of several dtypes or devices or
            over the same memory, or none that is trainable.
    """

    alpha = 0.0
    rank = 0

    def __init__(self, model: nn.Module, *, seed: int = 0):
        self.model, self.seed = model, seed
        self.known_rest: str | None = None
        self.labels: tuple[str, ...] | None = None
        self.layers: dict[str, nn.Module] = {}
        self.parameters = _trainable(model)
        self.arena = ParameterArena(self.parameters)
        self._origin: Origin | None = None

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return self.arena.live.dtype

    @property
    def origin(self) -> Origin:
        """Which base model this is, adapted how: as it was when `identify` was called last, or this asked first."""
        return self._origin or self.identify()

    def identify(self) -> Origin:
        """Take the parameters as they are now for the base that `origin` says; to be called before the first step.

        Raises:
            InputError: a parameter has no bytes (it is on the meta device).
        """
        self._origin = origin_of(self)
        return self._origin

    def first_block(self, *, in_use: bool = True) -> str:
        """ "": a perturbation reaches every block."""
        return ""

    def num_parameters(self) -> int:
        """Trainable numbers, those of shared parameters once."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def weights(self) -> list[Tensor]:
        """Those that merges write into: none."""
        return []

    def base_tensors(self) -> Iterable[tuple[str, dict[str, Tensor]]]:
        """The parameters as they are now."""
        return [("", {name: parameter.detach() for name, parameter in self.parameters.items()})]

    def rest_tensors(self) -> Iterable[tuple[str, dict[str, Tensor]]]:
        """Frozen parameters, and buffers that a checkpoint has."""
        return rest_tensors(self.model, (), map(id, self.parameters.values()))

    def trained_tensors(self) -> Iterable[tuple[str, dict[str, Tensor]]]:
        """The parameters as they are now."""
        return self.base_tensors()


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    if any(isinstance(module, Rank1Linear) for module in model.modules()):
        raise InputError("full parameters: the model has adapters; xgblora.detach(model) first")
    packed = [name for name, layer in candidate_layers(model).items() if not kind_of(layer).has_dense_weight(layer)]
    parameters = dict(model.named_parameters())
    packed += [name for name, one in parameters.items() if not _is_dense(one)]
    if packed:
        raise InputError(
            f"full parameters: {packed[0]} is no plain tensor of fp32, bf16 or fp16 (quantised weights cannot be "
            "trained themselves); load the model unquantised, or train adapters"
        )
    trained = {name: one for name, one in parameters.items() if one.requires_grad and one.numel()}
    if not trained:
        raise InputError("full parameters: the model has no parameter that requires a gradient")
    for what in ("dtype", "device"):
        several = sorted({str(getattr(one, what)) for one in trained.values()})
        if len(several) > 1:
            raise InputError(f"full parameters: they have several {what}s ({', '.join(several)}); one is needed")
    places: dict[int, str] = {}
    for name, one in trained.items():
        other = places.setdefault(one.data_ptr(), name)
        if other != name:
            raise InputError(f"full parameters: {name} and {other} share memory and are not one parameter; tie or copy")
    return trained


def _is_dense(parameter: nn.Parameter) -> bool:
    plain = type(parameter) is nn.Parameter and parameter.layout is torch.strided and not parameter.is_meta
    return plain and parameter.dtype in WEIGHT_DTYPES


def _lay_out(parameters: dict[str, nn.Parameter]) -> tuple[ParameterSlot, ...]:
    slots, end = [], 0
    for name, parameter in parameters.items():
        start = -(-end // ALIGNMENT) * ALIGNMENT
        slots.append(ParameterSlot(name, tuple(parameter.shape), start))
        end = slots[-1].stop
    return tuple(slots)
