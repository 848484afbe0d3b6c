"""A process that has imported everything and forks runs of `xgblora-train`, to be killed with SIGKILL and resumed.

    python killable_runs.py PLAN.json REPORT.json

Importing torch and transformers takes seconds, a fork takes milliseconds, and the process that is killed is as real.
PLAN holds the `Case`s, REPORT what became of each. The process that reads them runs nothing itself and has no threads;
neither has the one that drives a case: it forks the runs, kills them and waits for them.

A run tells where it is: its *window* is the phase (start, resume, step, merge, checkpoint, evaluation, results) and the
last of the `WATCHED` calls in it, kept in memory that the driver shares.
"""

import faulthandler
import functools
import gc
import importlib
import json
import mmap
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

# what writes, renames, syncs, removes or merges; a run can be killed just before any of these calls
WATCHED = (
    "os.replace",
    "os.fsync",
    "os.unlink",
    "os.rmdir",
    "shutil.rmtree",
    "torch.save",
    "xgblora.records.checkpoint.save_file",
    "xgblora.boosting.ledger.save_file",
    "xgblora.boosting.booster.Booster._write",
    "xgblora.boosting.booster.Booster.replay",
    "xgblora.adapters.AdapterSet.start",
    "xgblora.tape.Tape.record_merge",
    "xgblora.tape.Tape.go_on_from",
)
# a phase lasts while its function runs; the first step ends the start or the resume
PHASES = {
    "xgblora.boosting.booster.Booster.merge": "merge",
    "xgblora.training.trainer.XGBLoRATrainer._save_checkpoint": "checkpoint",
    "xgblora.training.trainer.XGBLoRATrainer.evaluate": "evaluation",
    "xgblora.runs.place._go_on_from_last": "resume",
    "xgblora.runs.fine_tune._leave_results": "results",
}
GIVEN_UP_AFTER = 60.0


@dataclass(frozen=True)
class Sweep:
    """One kill after the other at a run: attempt n to go on with it is killed before the n-th of some watched calls.

    There was something to go on with: a run that was killed in a checkpoint.

    Attributes:
        phase: where the calls are.
        first: before the tenth call of this name in a checkpoint the run was killed first.
        names: of the calls that are counted. None, if all are, and then the first two of a row of the same call, such
            as the removals that empty a folder: nothing is done, or a part; all is done at the call that follows.
        once: whether they are those of the first time that an attempt is in the phase. What it does again later is as
            fatal, and no other.
    """

    phase: str
    first: str
    names: tuple[str, ...] = ()
    once: bool = False

    def __str__(self) -> str:
        return f"{self.phase} after {self.first}"


@dataclass
class Case:
    """What one driver does: a run with `flags` that is left alone, and others that are killed and resumed to the end.

    Attributes:
        flags: of the run; where it writes is added.
        folder: where its runs write, each chain of attempts into a folder of its own.
        random_kills: how many kills at random moments between 0 and the seconds that the first run took.
        swept: what is swept, until there are no more such calls.
        seed: of the moments.
    """

    flags: list[str]
    folder: str
    random_kills: int = 0
    swept: list[Sweep] = field(default_factory=list)
    seed: int = 0

    @classmethod
    def of_json(cls, case: dict) -> "Case":
        """A case as `dataclasses.asdict` leaves it."""
        return cls(**{**case, "swept": [Sweep(**sweep) for sweep in case["swept"]]})


@dataclass
class Attempt:
    """One process: how it ended (0, an exit status, or -9 if it was killed), after how long, and in which window."""

    status: int
    seconds: float
    window: str


@dataclass
class Chain:
    """The attempts at one run, each but the last one killed, and the folder that they leave.

    `kind` is whole, random or what was swept.
    """

    kind: str
    folder: str
    attempts: list[Attempt] = field(default_factory=list)


class Windows:
    """Where a run is, in memory that a driver shares with the runs it forks; and the kill that a run waits for."""

    def __init__(self):
        self.share()
        self._phase = "start"
        self._sweep, self._calls, self._fatal_call = None, 0, 0
        self._row = ("", 0)

    def share(self) -> None:
        """Share the memory with the processes that this one forks, and with no other."""
        self._memory = mmap.mmap(-1, 256)

    @property
    def last(self) -> str:
        """The window that a run was in last."""
        return self._memory[:].rstrip(b"\0").decode()

    def expect_kill(self, sweep: Sweep | None, call: int) -> None:
        """Kill this process before the `call`-th of the calls that `sweep` counts."""
        self._sweep, self._fatal_call = sweep, call

    def enter(self, phase: str) -> str:
        """Begin `phase`; the one before."""
        before, self._phase = self._phase, phase
        if self._sweep and self._sweep.once and before == self._sweep.phase != phase:
            self._sweep = None
        self._show(phase)
        return before

    def reach(self, name: str) -> None:
        """A watched function is about to be called."""
        self._show(f"{self._phase}: {name}")
        sweep = self._sweep
        if not sweep or self._phase != sweep.phase or (sweep.names and name not in sweep.names):
            return
        last, length = self._row
        self._row = (name, length + 1 if name == last else 1)
        if sweep.names or self._row[1] <= 2:
            self._calls += 1
            if self._calls == self._fatal_call:
                os.kill(os.getpid(), signal.SIGKILL)

    def _show(self, text: str) -> None:
        self._memory[:] = text.encode().ljust(len(self._memory), b"\0")


def watch(windows: Windows) -> None:
    """Wrap the watched functions and those that begin a phase."""
    for name in WATCHED:
        _wrap(name, functools.partial(_watched, windows, ".".join(name.split(".")[-2:])))
    for name, phase in PHASES.items():
        _wrap(name, functools.partial(_phase, windows, phase))
    trainer = "xgblora.training.trainer.XGBLoRATrainer"
    _wrap(f"{trainer}.train", functools.partial(_beginning, windows, "resume", only_with="resume_from_checkpoint"))
    _wrap(f"{trainer}.training_step", functools.partial(_beginning, windows, "step"))


def _wrap(name: str, wrapper: Callable[[Callable], Callable]) -> None:
    parts = name.split(".")
    # the longest beginning that is a module
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:length]))
            break
        except ModuleNotFoundError:
            continue
    for part in parts[length:-1]:
        owner = getattr(owner, part)
    setattr(owner, parts[-1], wrapper(getattr(owner, parts[-1])))


def _watched(windows: Windows, name: str, function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*arguments, **keywords):
        windows.reach(name)
        return function(*arguments, **keywords)

    return call


def _phase(windows: Windows, phase: str, function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*arguments, **keywords):
        before = windows.enter(phase)
        try:
            return function(*arguments, **keywords)
        finally:
            windows.enter(before)

    return call


def _beginning(windows: Windows, phase: str, function: Callable, only_with: str | None = None) -> Callable:
    @functools.wraps(function)
    def call(*arguments, **keywords):
        if only_with is None or keywords.get(only_with):
            windows.enter(phase)
        return function(*arguments, **keywords)

    return call


class Driver:
    """Does what a case says."""

    def __init__(self, case: Case, windows: Windows, main: Callable[[list[str]], None]):
        self._case, self._windows, self._main = case, windows, main
        self._chains: list[Chain] = []

    def drive(self) -> list[Chain]:
        """All chains of the case."""
        Path(self._case.folder).mkdir(parents=True)
        whole = self._begin("whole")
        self._attempt(whole)
        self._kill_at_random(self._case.random_kills, seconds=whole.attempts[0].seconds)
        for sweep in self._case.swept:
            self._carry_out(sweep)
        return self._chains

    def _kill_at_random(self, kills: int, seconds: float) -> None:
        generator = random.Random(self._case.seed)
        while kills > 0:
            chain = self._begin("random")
            while kills > 0 and self._attempt(chain, after=generator.uniform(0.0, seconds)):
                kills -= 1
            if chain.attempts[-1].status != 0:
                self._attempt(chain)

    def _carry_out(self, sweep: Sweep) -> None:
        chain, call = self._begin(str(sweep)), 1
        # late enough for something to resume, to replay and to rotate away
        self._attempt(chain, sweep=Sweep("checkpoint", sweep.first, names=(sweep.first,)), call=10)
        while self._attempt(chain, sweep=sweep, call=call):
            call += 1

    def _begin(self, kind: str) -> Chain:
        chain = Chain(kind, f"{self._case.folder}/{len(self._chains)}-{kind.split()[0]}")
        self._chains.append(chain)
        return chain

    def _attempt(
        self, chain: Chain, *, after: float = GIVEN_UP_AFTER, sweep: Sweep | None = None, call: int = 0
    ) -> bool:
        """Go on with the run of `chain`, to be killed after so many seconds or before that call; whether it was."""
        self._windows.enter("start")
        begun = time.perf_counter()
        process = os.fork()
        if process == 0:
            self._windows.expect_kill(sweep, call)
            self._run(chain)
        while not (ended := os.waitpid(process, os.WNOHANG))[0]:
            if time.perf_counter() - begun >= after:
                os.kill(process, signal.SIGKILL)
                ended = os.waitpid(process, 0)
                break
            time.sleep(0.001)
        seconds, status = time.perf_counter() - begun, os.waitstatus_to_exitcode(ended[1])
        chain.attempts.append(Attempt(status, seconds, self._windows.last))
        if status not in (0, -signal.SIGKILL) or seconds > GIVEN_UP_AFTER:
            log = Path(f"{chain.folder}.log").read_text(encoding="utf-8")
            raise RuntimeError(f"a run ended with status {status} after {seconds:.0f} s, {self._case}:\n{log[-3000:]}")
        return status == -signal.SIGKILL

    def _run(self, chain: Chain) -> None:
        """What a forked process does: the command, and nothing after it."""
        status = 1
        try:
            log = os.open(f"{chain.folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, sys.stdout.fileno())
            os.dup2(log, sys.stderr.fileno())
            faulthandler.dump_traceback_later(GIVEN_UP_AFTER / 2)
            self._main([*self._case.flags, f"--output_dir={chain.folder}", "--resume_from_checkpoint=last"])
            status = 0
        except SystemExit as ending:
            status = ending.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def drive_all(cases: dict[str, Case], windows: Windows, main: Callable[[list[str]], None], at_once: int) -> dict:
    """Drive every case in a process of its own, `at_once` of them at a time; the chains of each, as JSON."""
    waiting, running = list(cases.values()), set()
    while waiting or running:
        while waiting and len(running) < at_once:
            running.add(_start_driver(waiting.pop(0), windows, main))
        ended, status = os.wait()
        running.remove(ended)
        if status != 0:
            sys.exit("a driver failed, see above")
    return {name: json.loads(_report(case).read_text(encoding="utf-8")) for name, case in cases.items()}


def _start_driver(case: Case, windows: Windows, main: Callable[[list[str]], None]) -> int:
    driver = os.fork()
    if driver != 0:
        return driver
    status = 1
    try:
        windows.share()
        chains = Driver(case, windows, main).drive()
        _report(case).write_text(json.dumps([asdict(chain) for chain in chains]), encoding="utf-8")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _report(case: Case) -> Path:
    return Path(f"{case.folder}.json")


def _main(plan: Path, report: Path) -> None:
    import torch
    from tqdm import tqdm

    from xgblora.cli.train import main

    # tqdm's own lock is shared with forked processes, and one that is killed would keep it for ever
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0

    def command(arguments: list[str]) -> None:
        # at once: torch makes its pool anew after a fork, and threads that load a model would race for it
        torch.set_num_threads(1)
        main(arguments)

    cases = {name: Case.of_json(case) for name, case in json.loads(plan.read_text(encoding="utf-8")).items()}
    # a short run, for all that is imported and compiled on the way; a backward pass would leave threads behind
    case = next(iter(cases.values()))
    command([*case.flags, f"--output_dir={case.folder}-warm", "--max_steps=1", "--trainer=zo", "--eval_strategy=no"])
    # what is here already is not looked through again, nor copied, by the garbage collection of every run
    gc.collect()
    gc.freeze()
    windows = Windows()
    watch(windows)
    chains = drive_all(cases, windows, command, at_once=2)
    report.write_text(json.dumps(chains), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
