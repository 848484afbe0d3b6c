"""The runs of a comparison: what each is, whether it is done, and how it is run as a process of its own."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xgblora.atomic_file import write_text
from xgblora.comparison.methods import Method
from xgblora.comparison.sweep import Setting
from xgblora.errors import InputError
from xgblora.process_group import process_number
from xgblora.records.run_folder import RunFolder, refuse_unwritable
from xgblora.training.arguments import FLAGS
from xgblora.training.flag import Decides

# what a run may be started with differently and still be the same run
_BESIDE_THE_POINT = {name for name, flag in FLAGS.items() if flag.decides is Decides.NOTHING}
_LAST_LINES = 5
_PATIENCE = 10.0


@dataclass(frozen=True)
class PlannedRun:
    """One run of the comparison.

    Attributes:
        method, seed, setting: what it is; `setting` holds the swept flags.
        folder: where it writes.
        words: the command line of `xgblora-train`.
        configuration: what these words come to, every flag with its value.
    """

    method: Method
    seed: int
    setting: Setting
    folder: RunFolder
    words: list[str]
    configuration: dict

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.path.name

    @property
    def record(self) -> Path:
        """The configuration that the run was started with, written before it starts."""
        return self.folder.path / "comparison_run.json"

    @property
    def console(self) -> Path:
        """What the process printed, all attempts."""
        return self.folder.path / "console.log"

    @property
    def done(self) -> bool:
        """Whether it came to its end, and has the losses to compare still."""
        return self.folder.metrics.exists() and self.folder.step_loss.exists()


@dataclass(frozen=True)
class Ended:
    """How a process ended that did not finish its run: its exit status, and the last lines that it printed."""

    exit_status: int
    last_lines: list[str]


def folder_name(method: str, seed: int, setting: Setting) -> str:
    """ "xgblora_zo-seed0-learning_rate-0.0003"."""
    return "-".join([method, f"seed{seed}", *(f"{flag}-{value!r}" for flag, value in setting.items())])


def differing_flags(planned: list[PlannedRun]) -> list[str]:
    """The flags, and what follows from them, that do not have the same value in all runs; without seed and folder."""
    aside = {"seed", "xgblora", "lora", "method", *_BESIDE_THE_POINT}
    first = planned[0].configuration
    return [name for name in first if name not in aside and len({str(run.configuration[name]) for run in planned}) > 1]


def check(run: PlannedRun, *, anew: bool = False) -> None:
    """Raise InputError if the folder of `run` holds something else than this very run, begun or finished.

    Args:
        run: what is to be run.
        anew: from its beginning, so that an earlier run of it may have had other settings.
    """
    if not run.record.exists():
        refuse_unwritable(run.folder.path)
        if run.folder.path.is_dir() and any(run.folder.path.iterdir()):
            raise InputError(
                f"output_root={run.folder.path.parent}: {run.name} was not written by a comparison; choose another"
            )
        return
    if anew:
        return
    before = json.loads(run.record.read_text(encoding="utf-8"))
    for name, ours in run.configuration.items():
        # a flag that one of two versions does not have is no difference
        if name in before and name not in _BESIDE_THE_POINT and before[name] != ours:
            raise InputError(
                f"output_root={run.folder.path.parent}: {run.name} was run with {name}={before[name]}, and now it is "
                f"{ours}; choose another output_root, or give --skip_completed false to run everything again"
            )


def forget(run: PlannedRun) -> None:
    """Remove what an earlier comparison left of `run`, so that it begins anew."""
    if run.record.exists():
        shutil.rmtree(run.folder.path)


def carry_out(run: PlannedRun, start: Callable[[PlannedRun], int]) -> Ended | None:
    """Run it from where it was left; None when it is finished.

    Args:
        run: what to run.
        start: runs it and gives its exit status, such as `start_process`.
    """
    run.folder.path.mkdir(parents=True, exist_ok=True)
    if not run.done:
        # of a run whose folder somebody removed as it ended
        run.folder.metrics.unlink(missing_ok=True)
    configuration = json.dumps(run.configuration, indent=1) + "\n"
    write_text(run.record, configuration)
    try:
        status = start(run)
    finally:
        # somebody removed the folder meanwhile, and the run made it again
        if run.folder.path.is_dir() and not run.record.exists():
            write_text(run.record, configuration)
    return None if run.done else Ended(status, _tail(run.console))


def start_process(run: PlannedRun, keep_open: tuple[int, ...] = ()) -> int:
    """Run `xgblora-train` in a process of its own, and stop it if this one is told to stop; its exit status.

    Of several processes that compare, what others than the first start says what it says where they do.

    Args:
        run: what to run.
        keep_open: file descriptors that the process inherits, see `xgblora.records.one_writer`.
    """
    command = [sys.executable, "-c", "from xgblora.cli.train import main; main()", *run.words]
    return wait_for(command, None if process_number() else run.console, keep_open)


def wait_for(command: list[str], console: Path | None, keep_open: tuple[int, ...] = ()) -> int:
    """Run `command` with its output appended to `console`, if there is one; its exit status.

    It gets no Ctrl-C of the terminal: whatever ends the waiting, it is asked to stop (SIGTERM), and killed if it does
    not.
    """
    with open(console, "ab") if console else contextlib.nullcontext() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output and subprocess.STDOUT,
            start_new_session=True,
            pass_fds=keep_open,
        )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, with everything cleaned up; the exit status is then 143."""

    def stop(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tail(path: Path) -> list[str]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-_LAST_LINES:]
