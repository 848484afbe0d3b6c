"""The arena: one flat fp32 tensor that holds every adapter of a model; the layers see views into it.

With all adapters in one tensor, perturbing, updating and saving them is one operation each, and the noise of a
zeroth-order step is addressed by position in the arena, whatever order the layers run in.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from xgblora import ops
from xgblora.adapters.live_copy import LiveCopy
from xgblora.adapters.rank1_linear import Rank1Linear
from xgblora.adapters.shared_inputs import SharedInputs
from xgblora.errors import InputError

# 8 elements are 16 bytes in bf16 and 32 in fp32: every vector starts where a 16-byte load may
ALIGNMENT = 8


@dataclass(frozen=True)
class Slot:
    """Where one layer's adapter lies in the arena: `a` at `[a_start, a_start + rank * in_features)`, `b` likewise."""

    name: str
    rank: int
    in_features: int
    out_features: int
    a_start: int
    b_start: int

    def views(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Views ([G, rank, in_features], [G, rank, out_features]) into `rows` [G, P]."""
        a = rows[:, self.a_start : self.a_start + self.rank * self.in_features]
        b = rows[:, self.b_start : self.b_start + self.rank * self.out_features]
        groups = rows.shape[0]
        return a.view(groups, self.rank, self.in_features), b.view(groups, self.rank, self.out_features)


class Arena:
    """Storage of all adapters of a model, on the device of its first layer.

    Copied or pickled together with its layers (as part of an `AdapterSet`), the copy is the storage of the copied ones.

    Attributes:
        master: fp32 [P]; the parameters `a` and `b` of every layer are views into it.
        live: [G, P] in the compute dtype: what the layers read while `read_live` is in force, None before that. Layers
            on other devices read copies: who writes `live` itself calls `spread_live` after that.
        slots: one per layer, in model order.
        moments: what an optimizer keeps of the adapters in training, by name; zero when a new adapter starts.
        untrained: bool [P], True where the round leaves `master` as it is; None while everything is trained.
        shared_inputs: what layers that read the same input compute for one another.
    """

    stacks = True

    def __init__(self, layers: dict[str, Rank1Linear]):
        self._layers = layers
        self.slots = lay_out(
            [(name, layer.rank, layer.in_features, layer.out_features) for name, layer in layers.items()]
        )
        first = next(iter(layers.values()))
        self.master = torch.zeros(arena_size(self.slots), dtype=torch.float32, device=first.device)
        self.live: Tensor | None = None
        self._copies = self._copies_elsewhere(first.device)
        # by first and last row: making the views of a large model takes as long as a tenth of a step on a GPU
        self._live_views: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self.moments: dict[str, Tensor] = {}
        self.untrained: Tensor | None = None
        self.shared_inputs = SharedInputs()
        for slot, layer in zip(self.slots, layers.values(), strict=True):
            a, b = slot.views(self.master.unsqueeze(0))
            a.copy_(layer.a.data.unsqueeze(0))
            b.copy_(layer.b.data.unsqueeze(0))
        self._bind_layers()

    def __getstate__(self):
        # views that are made anew, and what was seen of other layers
        return {**self.__dict__, "_live_views": {}, "shared_inputs": SharedInputs()}

    def __setstate__(self, state):
        self.__dict__.update(state)
        # parameters that were copied, or unpickled, are no views any more
        self._bind_layers()

    def refuse_detached(self) -> None:
        """Raise InputError if `detach` took the adapters off: what is done with them is not seen in the model."""
        if any(layer.detached for layer in self._layers.values()):
            raise InputError("the adapters were taken off the model (xgblora.detach): attach new ones to go on")

    def a_and_b(self, slot: Slot) -> tuple[Tensor, Tensor]:
        """Views ([rank, in_features], [rank, out_features]) into `master`."""
        a, b = slot.views(self.master.unsqueeze(0))
        return a[0], b[0]

    def allocate_live(self, groups: int, dtype: torch.dtype) -> Tensor:
        """Make `live` hold `groups` rows of `dtype`, each the cast of `master`, and return it."""
        # not `expand(...).contiguous()`: one fp32 row of that would be `master` itself
        self.live = self.master.to(dtype).repeat(groups, 1)
        self._live_views.clear()
        self.spread_live()
        return self.live

    def spread_live(self) -> None:
        """Copy `live` to the other devices on which layers read it; nothing where there are none."""
        for copy in self._copies:
            copy.write(self.live)

    @property
    def devices(self) -> list[torch.device]:
        """Where layers lie: the device of the arena, then the others."""
        return [self.master.device, *(copy.device for copy in self._copies)]

    def perturb(self, seeds: Tensor, eps: Tensor, signs: Tensor, distribution: str) -> None:
        """Write the perturbed adapters of a step into the rows of `live`; arguments as of `xgblora.ops.perturb`."""
        ops.perturb(self.master, self.live, seeds, eps, signs, distribution=distribution)
        if self.untrained is not None:
            torch.where(self.untrained, self.master.to(self.live.dtype), self.live, out=self.live)
        self.spread_live()

    def restore(self) -> None:
        """Write the cast of `master` into every row of `live`, if there is one: exact whatever `live` held."""
        if self.live is not None:
            self.live.copy_(self.master)
            self.spread_live()

    def train(self, names: Collection[str] | None = None, *, trains_a: bool = True) -> None:
        """Train the adapters of the layers `names` alone (None: of all), without their `a` unless `trains_a`.

        The other layers run without their adapters, which must be zero then. Neither perturbation nor update reaches
        what is not trained; backpropagation gives it no gradient.
        """
        trained = torch.zeros_like(self.master, dtype=torch.bool)
        for slot, layer in zip(self.slots, self._layers.values(), strict=True):
            layer.active, layer.trains_a = names is None or slot.name in names, trains_a
            if layer.active:
                a, b = slot.views(trained.unsqueeze(0))
                a.fill_(trains_a)
                b.fill_(True)
        self.untrained = None if names is None and trains_a else ~trained

    @contextmanager
    def kept(self) -> Iterator[None]:
        """While this lasts, `master` and the moments may be written anywhere; what is not trained comes back after."""
        if self.untrained is None:
            yield
            return
        before = self.master.clone()
        yield
        torch.where(self.untrained, before, self.master, out=self.master)
        for moment in self.moments.values():
            if moment.shape == self.untrained.shape:
                moment.masked_fill_(self.untrained, 0.0)

    def forget_moments(self) -> None:
        """Set the moments to zero, in place: they are of an adapter that is no more."""
        for moment in self.moments.values():
            moment.zero_()

    def read_live(self, start: int, stop: int, group_of_row: Tensor | None = None) -> None:
        """Let the layers read rows `start .. stop - 1` of `live`: as many groups of input rows.

        Args:
            group_of_row: None for equal groups, in order; or int32 [R] on the device of `live`: the input's rows
                (positions) fall into R equal runs, such as its texts, and those of run r read row `start +
                group_of_row[r]`. Its values must be below `stop - start`: nothing looks at them on a GPU.
        """
        self.refuse_detached()
        if (start, stop) not in self._live_views:
            rows = self.live[start:stop]
            views = self._live_views[start, stop] = [slot.views(rows) for slot in self.slots]
            for copy in self._copies:
                for number, of_layer in copy.views(start, stop):
                    views[number] = of_layer
        for layer, views in zip(self._layers.values(), self._live_views[start, stop], strict=True):
            layer.live, layer.group_of_row = views, group_of_row
        for copy in self._copies if group_of_row is not None else ():
            copy.assign_groups(group_of_row)

    def while_unchanged(self) -> AbstractContextManager[None]:
        """While this lasts, nothing that torch does not count writes `live`: layers may compute for one another."""
        return self.shared_inputs.while_unchanged()

    def read_one_row(self) -> None:
        """Let the layers read the first row of `live`: one group."""
        self.read_live(0, 1)

    def read_master(self) -> None:
        """Let the layers read their parameters, the views into `master`: one group, differentiable."""
        for layer in self._layers.values():
            layer.live = layer.group_of_row = None

    def move(self, device: torch.device) -> None:
        """Move the adapters to `device`, as all layers are; the layers read their parameters afterwards."""
        if self.master.device == device and not self._copies:
            return
        self.master, self.live, self._copies = self.master.to(device), None, []
        self.untrained = None if self.untrained is None else self.untrained.to(device)
        self._live_views.clear()
        self.read_master()
        self._bind_parameters()

    def _copies_elsewhere(self, home: torch.device) -> list[LiveCopy]:
        """One for each device other than `home` on which there are layers, in their order."""
        numbers: dict[torch.device, list[int]] = {}
        layers, end = list(self._layers.values()), arena_size(self.slots)
        for number, layer in enumerate(layers):
            numbers.setdefault(layer.device, []).append(number)
        numbers.pop(home, None)
        ends = [*(slot.a_start for slot in self.slots[1:]), end]
        return [
            LiveCopy(device, there, [self.slots[n] for n in there], [layers[n] for n in there], ends[there[-1]])
            for device, there in numbers.items()
        ]

    def _bind_layers(self) -> None:
        for layer in self._layers.values():
            layer.shared_inputs, layer.move_storage = self.shared_inputs, self.move
        self._bind_parameters()

    def _bind_parameters(self) -> None:
        for slot, layer in zip(self.slots, self._layers.values(), strict=True):
            layer.a.data, layer.b.data = self.a_and_b(slot)


def arena_size(slots: tuple[Slot, ...]) -> int:
    """Elements of the arena with this layout, the padding after the last slot included."""
    return _aligned(slots[-1].b_start + slots[-1].rank * slots[-1].out_features)


def lay_out(sizes: Iterable[tuple[str, int, int, int]]) -> tuple[Slot, ...]:
    """The slots of adapters of these names, ranks and sizes (in, out), one behind the other."""
    slots, end = [], 0
    for name, rank, in_features, out_features in sizes:
        a_start = end
        b_start = _aligned(a_start + rank * in_features)
        end = _aligned(b_start + rank * out_features)
        slots.append(Slot(name, rank, in_features, out_features, a_start, b_start))
    return tuple(slots)


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT
