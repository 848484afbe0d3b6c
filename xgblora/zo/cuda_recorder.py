"""`CudaRecorder`: the few calls of `torch.cuda` that recording and replaying a CUDA graph takes, and nothing else."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# libraries that start up late, and Triton kernels that are not compiled yet, do so here and not in a recording
WARM_UPS = 2


class CudaRecorder:
    """Records work on one device into CUDA graphs that share one pool of memory.

    Sharing is safe because graphs replay one after the other on the stream of the step, and nothing that one leaves in
    the pool is read after the next replay.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: tuple[int, int] | None = None

    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """Run `work` for warming up, then record it.

        Returns:
            What replays the recording on the current stream, and the tensors that each replay writes.

        Raises:
            RuntimeError: the work cannot be recorded.
        """
        with torch.cuda.device(self._device):
            return self._record(work)

    def forget(self) -> None:
        """Begin a pool of its own with the next recording; to be called when no graph is left.

        A pool whose graphs are all gone must not be used again.
        """
        torch.cuda.synchronize(self._device)
        self._pool = None

    def memory_share(self) -> float:
        """What the graphs hold of the device's memory, from 0 to 1."""
        held = sum(
            segment["total_size"]
            for segment in torch.cuda.memory_snapshot()
            if tuple(segment["segment_pool_id"]) == tuple(self._pool or ())
        )
        return held / torch.cuda.get_device_properties(self._device).total_memory

    @contextmanager
    def refusing_reads(self) -> Iterator[None]:
        """Let whatever makes the host wait for the device raise a RuntimeError: a graph cannot hold it."""
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    def _record(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        current = torch.cuda.current_stream()
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            self._stream.wait_stream(current)
            # on the stream that is recorded next: libraries keep work spaces by stream
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    work()
            current.wait_stream(self._stream)
            # thread_local: the threads of a data loader may pin memory meanwhile
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                outputs = work()
        except BaseException:
            end_broken_capture(self._device, self._pool)
            raise
        finally:
            # a recording that fails may leave its own stream as the current one
            torch.cuda.set_stream(current)
        return graph.replay, outputs


def end_broken_capture(device: torch.device, pool: tuple[int, int]) -> None:
    """Let the allocator forget a capture into `pool` that was broken off.

    torch ends a capture before it tells its allocator so. Where ending it fails, the allocator goes on believing in it,
    and from then on every `torch.cuda.empty_cache` and every other capture of the process fails an internal assertion
    (read in torch 2.11's CUDAGraph.cpp).
    """
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)
    # it fails where nothing was begun, or all was ended in order
    with contextlib.suppress(RuntimeError):
        if end is not None:
            end(device.index if device.index is not None else torch.cuda.current_device(), pool)
