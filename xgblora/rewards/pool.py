"""Rewards of many texts at once: a pool of processes, each of which may fail, hang or die without the run.

`multiprocessing.Pool` and `ProcessPoolExecutor` know no time limit that ends what runs over it, and a process that dies
takes their whole pool down or is waited for for ever. So each process has a pipe of its own and a thread that waits for
it: no answer in time, or no process any more, is one failed reward, and a new process stands in its place.
"""

import logging
import math
import multiprocessing
import os
import queue
import signal
import sys
import threading
import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from xgblora.errors import InputError, check_positive
from xgblora.rewards.functions import Reward
from xgblora.rewards.worker import serve

logger = logging.getLogger("xgblora")

ON_FAILURE = ("count", "stop")
# seconds for a process to start and to import what the reward's file imports
_START = 120.0
_starting = threading.Lock()


@dataclass(frozen=True)
class Text:
    """What a reward judges.

    Attributes:
        prompt, completion: what was asked, and what a member wrote.
        row: of the data, the prompt is made of; plain values.
        origin: of the row, "sums.jsonl line 7".
    """

    prompt: str
    completion: str
    row: dict
    origin: str


@dataclass(frozen=True)
class Scored:
    """What a text is worth.

    Attributes:
        value: the weighted sum of its rewards; NaN if one of them failed.
        rewards: each by its name, without its weight; NaN where it failed.
        failures: what went wrong, a line each.
    """

    value: float
    rewards: dict[str, float]
    failures: tuple[str, ...] = ()


class RewardPool:
    """Runs rewards; use it in a `with` block, which ends its processes.

    Args:
        rewards: see `parse_rewards`.
        workers: processes.
        time_limit: seconds for one reward of one text; the process that takes longer is killed and replaced.
        on_failure: "count": a failed reward is NaN and is told in the log; "stop": it ends the run.

    Raises:
        InputError: a number is out of range, or a reward cannot be loaded.
    """

    def __init__(
        self, rewards: Sequence[Reward], *, workers: int = 1, time_limit: float = 10.0, on_failure: str = "count"
    ):
        check_positive("reward_time_limit", time_limit)
        if workers < 1:
            raise InputError(f"reward_workers={workers}: must be 1 or more")
        if on_failure not in ON_FAILURE:
            raise InputError(f"on_failure={on_failure}: must be one of {', '.join(ON_FAILURE)}")
        self._rewards, self._limit, self._on_failure = tuple(rewards), time_limit, on_failure
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="reward")
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        try:
            self._workers += [_Worker(self._rewards) for _ in range(workers)]
            for worker in self._workers:
                worker.wait_until_ready()
                self._free.put(worker)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def score(self, texts: Sequence[Text]) -> list[Scored]:
        """The rewards of texts, in their order.

        Raises:
            InputError: one failed, and that ends the run.
        """
        questions = [(text, number) for text in texts for number in range(len(self._rewards))]
        futures = [self._threads.submit(self._ask, *question) for question in questions]
        answers = []
        for future in futures:
            value, failure = future.result()
            if failure is not None:
                if self._on_failure == "stop":
                    for other in futures:
                        other.cancel()
                    raise InputError(failure)
                logger.warning("%s: counts as failed", failure)
            answers.append((value, failure))
        each = len(self._rewards)
        return [self._scored(answers[start : start + each]) for start in range(0, len(answers), each)]

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.closed = True
            worker.end()

    def _scored(self, answers: list[tuple[float, str | None]]) -> Scored:
        named = {reward.name: value for reward, (value, _) in zip(self._rewards, answers, strict=True)}
        value = sum(reward.weight * named[reward.name] for reward in self._rewards)
        return Scored(value, named, tuple(failure for _, failure in answers if failure is not None))

    def _ask(self, text: Text, number: int) -> tuple[float, str | None]:
        """The reward of a text, or NaN and what went wrong."""
        worker = self._free.get()
        try:
            value, wrong = worker.ask((number, text.prompt, text.completion, text.row), self._limit)
        finally:
            self._free.put(worker)
        if wrong is None:
            return value, None
        return math.nan, f"reward {self._rewards[number].name} of {text.origin}: {wrong}"


class _Worker:
    """A process that answers questions, started anew when it had to be ended, unless the pool is `closed`."""

    def __init__(self, rewards: tuple[Reward, ...]):
        self._rewards, self.closed = rewards, False
        # a pool that closes ends it while another thread may
        self._ending = threading.Lock()
        self._start()

    def ask(self, question: tuple, limit: float) -> tuple[float | None, str | None]:
        """The value, or what went wrong, within `limit` seconds."""
        if not self._ready:
            try:
                self.wait_until_ready()
            except InputError as error:
                return None, str(error)
        try:
            self._connection.send(question)
            if self._connection.poll(limit):
                return self._connection.recv()
            wrong = f"took longer than {limit:g} s"
        except (EOFError, OSError):
            self._process.join(1.0)
            wrong = f"ended its process ({_ending(self._process.exitcode)})"
        except Exception as error:  # a row that cannot be pickled
            return None, f"its row cannot be sent to a process: {error}"
        self.end()
        if not self.closed:
            self._start()
        return None, wrong

    def wait_until_ready(self) -> None:
        """Wait until the process has loaded the rewards; InputError if it cannot."""
        try:
            wrong = self._connection.recv()[1] if self._connection.poll(_START) else f"took longer than {_START:g} s"
        except (EOFError, OSError):
            self._process.join(1.0)
            wrong = f"ended its process ({_ending(self._process.exitcode)})"
        if wrong is not None:
            named = " ".join(f"{reward.path}:{reward.function}" for reward in self._rewards)
            raise InputError(wrong if wrong.startswith("reward=") else f"reward={named}: loading it {wrong}")
        self._ready = True

    def end(self) -> None:
        """End the process, and what it has started."""
        with self._ending:
            if self._process.is_alive():
                self._kill()
            self._process.join(5.0)
            self._connection.close()

    def _kill(self) -> None:
        if hasattr(os, "killpg"):
            try:
                # its group, if it has one already
                if os.getpgid(self._process.pid) == self._process.pid:
                    os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.kill()

    def _start(self) -> None:
        self._ready = False
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._rewards), daemon=True)
        with _starting:
            # a process starts by importing the program that started it, and ours is a trainer
            main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
            try:
                self._process.start()
            finally:
                sys.modules["__main__"] = main
        theirs.close()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit status {code}"
