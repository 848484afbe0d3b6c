"""CUDA graphs of the parts of a zeroth-order step: recorded once for a batch shape, then launched as one.

A forward of a small model is some hundred launches, and Python takes longer over them than the device. A CUDA graph
repeats what was launched while it was recorded, at the addresses and with the Python numbers of that time; so

- what changes from step to step lies in tensors: those of the batch are copied to where the graph reads them, seeds,
  rates and losses are where they always are;
- a part that waits for the device is not recorded: what it reads there may decide what it does next;
- graphs are dropped as soon as a tensor that they read by its address lies elsewhere;
- outputs are copied, because the next replay writes over them;
- the first replay of every graph is compared with the part itself, bit for bit, and so are later ones now and then,
  because a number of Python may have changed that was recorded as it was.

Whatever goes wrong, or comes out different, ends recording for good, with one line that says why; the step then runs
as it does without graphs.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from xgblora.spelling import one_line

logger = logging.getLogger("xgblora")

# recording costs about five steps: not for a shape that may never come again
SEEN_BEFORE_RECORDING = 2
MAX_GRAPHS = 64
# replays of a part: each 4 times as late as the last, so that a long run has a handful of comparisons
COMPARED_REPLAYS = frozenset(4**power for power in range(2, 16))
# of the device's memory. The graphs share it, so that it is what the largest one needs, and little more.
MAX_MEMORY_SHARE = 0.25
_REMEMBERED_SHAPES = 4096
_PLAIN = (bool, int, float, str, type(None))

Work = Callable[[Any], tuple[Tensor, ...]]


class Recorder(Protocol):
    """What `StepGraphs` needs of a device; `xgblora.zo.cuda_recorder.CudaRecorder` has the meaning of each."""

    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]: ...

    def forget(self) -> None: ...

    def memory_share(self) -> float: ...

    def refusing_reads(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Graph:
    """A recording: where it reads its inputs, what replays it, and where it leaves its outputs."""

    inputs: dict[str, Tensor]
    replay: Callable[[], None]
    outputs: tuple[Tensor, ...]

    def run(self, inputs: Any) -> tuple[Tensor, ...]:
        """The outputs for these `inputs`, in tensors of their own."""
        if self.inputs:
            # one launch for all of them
            torch._foreach_copy_(list(self.inputs.values()), [inputs[name] for name in self.inputs])
        self.replay()
        return tuple(output.clone() for output in self.outputs)


class StepGraphs:
    """Runs the parts of a step, from a graph where there is one for the shapes of the inputs.

    Args:
        recorder: of the device.
        device: where the inputs must lie.
        tensors: gives what graphs read and write by address, as it is now.

    Attributes:
        reason: why nothing is recorded any more; None as long as it may be.
    """

    def __init__(self, recorder: Recorder, device: torch.device, tensors: Callable[[], Iterable[Tensor]]):
        self._recorder, self._device, self._tensors = recorder, device, tensors
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._seen: Counter[Hashable] = Counter()
        self._replays: Counter[Hashable] = Counter()
        self._places: tuple[int, ...] = ()
        self._full = False
        self._said: set[str] = set()
        self.reason: str | None = None

    def __len__(self) -> int:
        """The number of graphs."""
        return len(self._graphs)

    def run(self, part: Hashable, work: Work, inputs: Any, state: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """`work(inputs)`.

        Args:
            part: names the work, together with whatever it depends on that is in neither `inputs` nor a tensor.
            work: must leave nothing behind but what it returns and what it writes into `state`.
            inputs: a mapping of tensors on the device and plain values.
            state: the tensors that the work changes in place.
        """
        if self.reason is not None:
            return work(inputs)
        obstacle = _obstacle(inputs, self._device)
        if obstacle is not None:
            self._give_up(obstacle)
            return work(inputs)
        self._drop_if_moved()
        key = (part, *_signature(inputs))
        graph = self._graphs.get(key)
        if graph is None:
            return self._record(key, work, inputs, state) if self._is_due(key) else work(inputs)
        self._graphs.move_to_end(key)
        self._replays[part] += 1
        if self._replays[part] in COMPARED_REPLAYS:
            return self._compared(lambda: graph, work, inputs, state)[0]
        return graph.run(inputs)

    def _is_due(self, key: Hashable) -> bool:
        if self._full:
            return False
        if len(self._seen) >= _REMEMBERED_SHAPES:
            self._seen.clear()
        self._seen[key] += 1
        return self._seen[key] > SEEN_BEFORE_RECORDING

    def _record(self, key: Hashable, work: Work, inputs: Any, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        elsewhere = self._elsewhere()
        if elsewhere is not None:
            self._give_up(f"the model lies on {self._device} and on {elsewhere}")
            return work(inputs)
        outputs, graph = self._compared(lambda: self._recorded(work, inputs), work, inputs, state)
        if graph is not None:
            self._keep(key, graph)
        return outputs

    def _compared(
        self, graph_of: Callable[[], Graph], work: Work, inputs: Any, state: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], Graph | None]:
        """The outputs of the work itself, and the graph if it gives the same; without one, recording is over."""
        before = _copies(state)
        try:
            with self._recorder.refusing_reads():
                expected = work(inputs)
        except Exception as error:
            _restore(state, before)
            # what is not about waiting is raised again here, as it would be without graphs
            outputs = work(inputs)
            self._give_up(f"it waits for the device ({one_line(error, kind=True, limit=120)})")
            return outputs, None
        after = _copies(state)
        try:
            _restore(state, before)
            graph = graph_of()
            _restore(state, before)
            outputs = graph.run(inputs)
            if all(map(_same_bits, (*outputs, *state), (*expected, *after))):
                return expected, graph
            self._give_up("a graph of it gave other numbers than the step itself")
        except Exception as error:
            self._give_up(f"recording it failed ({one_line(error, kind=True, limit=120)})")
        finally:
            _restore(state, after)
        return expected, None

    def _recorded(self, work: Work, inputs: Any) -> Graph:
        places = {name: value.clone() for name, value in inputs.items() if isinstance(value, Tensor)}
        values = {**inputs, **places}
        replay, outputs = self._recorder.record(lambda: work(values))
        return Graph(places, replay, outputs)

    def _keep(self, key: Hashable, graph: Graph) -> None:
        del self._seen[key]
        share = self._recorder.memory_share()
        if share > MAX_MEMORY_SHARE:
            self._full = True
            self._say_once(f"ZO: CUDA graphs hold {share:.0%} of the device's memory; further batch shapes run without")
            return
        self._say_once("ZO: the step runs as CUDA graphs, one for each batch shape")
        self._graphs[key] = graph
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)

    def _elsewhere(self) -> torch.device | None:
        """Another device of the same type that has tensors of the work: a graph is of one device."""
        places = (tensor.device for tensor in self._tensors())
        return next((one for one in places if one.type == self._device.type and one != self._device), None)

    def _drop_if_moved(self) -> None:
        places = tuple(tensor.data_ptr() for tensor in self._tensors())
        if places != self._places:
            self._drop()
            self._places = places

    def _drop(self) -> None:
        if self._graphs or self._full:
            self._graphs.clear()
            self._recorder.forget()
            self._full = False

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._drop()
        self._say_once(f"ZO: the step is not captured as CUDA graphs: {reason}")

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            logger.info(line)


def _obstacle(inputs: Any, device: torch.device) -> str | None:
    """Why work on these inputs cannot be recorded, as far as they tell."""
    if not (hasattr(inputs, "items") and hasattr(inputs, "keys")):
        return f"the batch is no mapping of tensors but a {type(inputs).__name__}"
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            if value.layout != torch.strided:
                return f"{name} of the batch is no dense tensor"
            if value.device != device:
                return f"{name} of the batch lies on {value.device}"
        elif not _is_plain(value):
            return f"{name} of the batch is a {type(value).__name__}"
    return None


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (type(value) is tuple and all(map(_is_plain, value)))


def _signature(inputs: Any) -> tuple[Hashable, ...]:
    """What of the inputs, and of torch's settings, decides which kernels run with which numbers."""
    entries = (
        (name, value.shape, value.stride(), value.dtype, value.device)
        if isinstance(value, Tensor)
        else (name, type(value), value)
        for name, value in inputs.items()
    )
    return (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), *entries)


def _copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _restore(tensors: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Equality that a NaN has with itself."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(*(tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other)))
