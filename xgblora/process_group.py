"""`ProcessGroup`: the processes of a run as torch.distributed joins them, and who of them is gone when one is.

`torchrun` and `accelerate launch` say in environment variables how many there are. Numbers cross the network in fp32 or
as they are, in the order of the processes, and every collective here counts what it sends.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from xgblora.errors import InputError, in_one_line
from xgblora.spelling import one_line


class ProcessFailure(Exception):
    """A run of several processes cannot go on, because one of them is gone or is not like the others.

    The message is one line; it is empty where another process says it.

    Attributes:
        left: the process numbers of the system of the others on this machine, that look in the same moment who is gone.
    """

    def __init__(self, message: str, left: Iterable[int] = ()):
        super().__init__(message)
        self.left = tuple(left)

    def let_others_look(self) -> None:
        """Wait until the others have ended, 10 seconds at most: a process that ends earlier is taken for a lost one."""
        _wait(lambda: not any(map(_runs, self.left)), 10.0)


class AgreedInputError(InputError):
    """Bad input that ends all processes of a run: each raises one, the first with the line, the others empty."""


@dataclass(frozen=True)
class Peer:
    """Where a process of the run is.

    Attributes:
        host: the name of its machine.
        pid: its number there.
        device: "cpu" or "cuda".
    """

    host: str
    pid: int
    device: str


class ProcessGroup:
    """All processes of a run; each makes one, and lets them `meet` at the same place of its program.

    Args:
        process, processes: the number of this one from 0, and how many there are.
        device: in which tensors that `gather` is called with lie: "cpu" or "cuda".
        timeout: seconds after which a collective that another process does not join fails.

    Attributes:
        peers: where each is; none before they met.
        bytes_sent: what `gather` was given so far by this process, in bytes.
    """

    def __init__(self, process: int, processes: int, device: str, timeout: float):
        self.process, self.processes = process, processes
        self.bytes_sent = 0
        self.peers: list[Peer] = []
        self._device, self._timeout = device, timedelta(seconds=timeout)
        self._host: dist.ProcessGroup | None = None
        self._gpus: dist.ProcessGroup | None = None

    def meet(self) -> None:
        """Open the connections, once; every process must call this.

        Raises:
            ProcessFailure: as of `gather`.
        """
        if self._host is not None:
            return
        # groups of their own, since how long others are waited for is known when the flags are
        self._host = dist.new_group(backend="gloo", timeout=self._timeout)
        self.peers = self.objects(Peer(socket.gethostname(), os.getpid(), self._device))
        if all(peer.device == "cuda" for peer in self.peers) and dist.is_nccl_available():
            # the losses stay on the devices, and no host waits for its own
            self._gpus = dist.new_group(backend="nccl", timeout=self._timeout)

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.process == 0

    def gather(self, values: Tensor) -> Tensor:
        """[k] of this process to [N, k] of all, in order, on the device of `values`.

        Raises:
            ProcessFailure: a process is gone, or did not come within the timeout.
        """
        self.meet()
        sent = values if self._gpus is not None else values.cpu()
        parts = [torch.empty_like(sent) for _ in range(self.processes)]
        try:
            dist.all_gather(parts, sent, group=self._gpus or self._host)
        except RuntimeError as error:
            raise self.lost(error) from error
        self.bytes_sent += sent.nbytes
        return torch.stack(parts).to(values.device)

    def objects(self, ours: Any) -> list[Any]:
        """What every process gives, in order; anything that can be pickled.

        Raises:
            ProcessFailure: as of `gather`.
        """
        self.meet()
        theirs: list[Any] = [None] * self.processes
        try:
            dist.all_gather_object(theirs, ours, group=self._host)
        except RuntimeError as error:
            raise self.lost(error) from error
        return theirs

    def of_first(self, value: Any) -> Any:
        """What the first process gives; the others' values are dropped.

        Raises:
            ProcessFailure: as of `gather`.
        """
        self.meet()
        box = [value]
        try:
            dist.broadcast_object_list(box, src=0, group=self._host)
        except RuntimeError as error:
            raise self.lost(error) from error
        return box[0]

    def lost(self, error: BaseException | None = None) -> ProcessFailure:
        """What there is to say of an error of torch.distributed, or of a signal: who is gone.

        Its message is empty where another process has to say it: of those that are left the first one speaks.
        """
        gone = self.gone(within=2.0)
        if self.processes > 2:
            self._leave()
        left = [process for process in range(self.processes) if process not in gone]
        if gone and self.process != left[0]:
            return ProcessFailure("")
        if not gone:
            reason = f" ({one_line(error, limit=160)})" if error is not None else ""
            return ProcessFailure(f"process {self.process} of {self.processes} lost the others{reason}")
        names = " and ".join(f"{one} (pid {self.peers[one].pid} on {self.peers[one].host})" for one in gone)
        others = [self.peers[one] for one in left if one != self.process]
        here = [peer.pid for peer in others if peer.host == self.peers[self.process].host]
        return ProcessFailure(f"of {self.processes} processes this one is gone: {names}", here)

    def gone(self, within: float = 0.0) -> list[int]:
        """The numbers of the processes of this machine that ended, those not counted that left because others had.

        Args:
            within: seconds to wait for the first: a killed one loses its connections before it shows as ended.
        """
        host = self.peers[self.process].host
        here = [number for number, peer in enumerate(self.peers) if peer.host == host]
        _wait(lambda: not all(_runs(self.peers[number].pid) for number in here), within)
        gone = [number for number in here if not _runs(self.peers[number].pid)]
        # with one there is nothing to tell apart, and what is asked may have gone with it
        left = self._left() if len(gone) > 1 else set()
        return [number for number in gone if number not in left] or gone

    def _leave(self) -> None:
        # the store may have gone with the process that kept it
        with contextlib.suppress(RuntimeError, ValueError):
            _store().set(f"xgblora/left/{self.process}", "")

    def _left(self) -> set[int]:
        try:
            return {number for number in range(self.processes) if _store().check([f"xgblora/left/{number}"])}
        except (RuntimeError, ValueError):
            return set()


def join() -> None:
    """Let this process join those that were started with it, unless it has: `torchrun` says where they meet.

    Raises:
        InputError: nothing says where, or nobody is there.
    """
    if not dist.is_initialized():
        with in_one_line(ValueError, RuntimeError, about=f"WORLD_SIZE={started()}: the processes cannot meet: "):
            store, number, count = next(dist.rendezvous("env://"))
            # torchrun keeps its store when it starts processes again, with the addresses of those that are gone
            attempt = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            # with GPUs both: losses by NCCL, words by gloo
            backend = None if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=attempt, rank=number, world_size=count)


def started() -> int:
    """How many processes were started together, as `torchrun` and `accelerate launch` say it; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1")) if dist.is_available() else 1


def process_number() -> int:
    """The number of this process among those that were started together, from 0."""
    return int(os.environ.get("RANK", "0")) if started() > 1 else 0


def leave_together(status: int) -> None:
    """End this process with `status` when all others come here too; nothing where it is alone.

    What started them ends the others as soon as one has ended, and then they end as it says.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(RuntimeError):
            dist.all_gather_object([None] * dist.get_world_size(), status)
            os._exit(status)


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _wait(until: Callable[[], bool], seconds: float) -> None:
    late = time.monotonic() + seconds
    while not until() and time.monotonic() < late:
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
