"""`only_one`: a folder that one process at a time works in, by a lock of the operating system.

The lock goes with its process, however that ends: what is started next has it at once. Windows has no such lock here,
and a file system that knows none is warned about.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from xgblora.errors import InputError

logger = logging.getLogger("xgblora")

_LOCK = ".lock"


@contextmanager
def only_one(folder: Path, *, flag: str, who: str, with_children: bool = False) -> Iterator[tuple[int, ...]]:
    """Keep other processes out of `folder` while the block runs; it is made if it is not there.

    What was made goes again when nothing was written beside it.

    Args:
        folder: where the process works.
        flag: what names the folder, for the lines of errors.
        who: the others, as the line says it.
        with_children: whether the lock is that of all processes that keep what is yielded open, too; the last one to
            end frees the folder. Without it a forked process, such as one that loads data, keeps nobody out.

    Yields:
        The file descriptors to keep open.

    Raises:
        InputError: another process is at work in `folder`, or it cannot be made or written.
    """
    if os.name != "posix":
        yield ()
        return
    import fcntl

    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        lock = _locked(folder / _LOCK, fcntl.flock if with_children else fcntl.lockf)
    except OSError as error:
        raise InputError(f"{flag}={folder}: cannot be written ({error.strerror})") from None
    if lock is None:
        raise InputError(f"{flag}={folder}: {who} is at work there; wait for its end, or choose another folder")
    with lock:
        try:
            yield (lock.fileno(),)
        finally:
            if not with_children:
                _remove(folder, made)


def _locked(path: Path, take: Callable[[IO, int], None]) -> IO | None:
    """The file at `path`, locked; None if another process has it."""
    import fcntl

    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "a", encoding="utf-8")  # noqa: SIM115
        try:
            take(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            lock.close()
            return None
        except OSError as error:
            logger.warning("%s: no lock keeps a second run out (%s)", path.parent, error.strerror)
            return lock
        # whoever had it before may have removed it between the two calls
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        lock.close()


def _remove(folder: Path, made: list[Path]) -> None:
    """Remove the lock, and those of the folders that were made for it that hold nothing, the inmost first."""
    (folder / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        for path in made:
            path.rmdir()
