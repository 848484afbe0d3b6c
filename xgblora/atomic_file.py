"""Files and folders that appear whole or not at all: written under a temporary name, synced to disk, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MOVED_ASIDE = ".old"


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends without an exception, sync it and rename it to `path`.

    A reader sees the old file or the whole new one. An exception leaves the old file and removes the temporary one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        sync_file(temporary)
        # mkstemp makes files that only their owner can read
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; when the block ends without an exception, sync and rename it to `folder`.

    What stood there is removed only after that. An exception leaves it as it was and removes the new one. Of a process
    that is killed it may be left beside its place; `remove_leftovers` brings it back.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                sync_file(path)
                # safetensors makes files that only their owner can read
                os.chmod(path, 0o666 & ~_umask())
        _sync_folder(temporary)
        # mkdtemp makes folders that only their owner can read
        os.chmod(temporary, 0o777 & ~_umask())
        _put_in_place(temporary, folder)
        _sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(folder: str | os.PathLike, name: str) -> None:
    """Remove what a killed process left in `folder` of files or folders called `name` (a glob pattern) half written.

    A folder that it had moved aside to put a new one in its place comes back, if the new one did not get there.
    """
    for path in list(Path(folder).glob(f".{name}.*")):
        place = path.with_name(path.name[1:].rsplit(".", 2)[0])
        if not path.is_dir():
            path.unlink(missing_ok=True)
        elif path.suffix == _MOVED_ASIDE and not place.exists():
            os.replace(path, place)
        else:
            shutil.rmtree(path, ignore_errors=True)


def sync_file(path: str | os.PathLike) -> None:
    """Return when what was written to `path` is on the disk."""
    # "r+b" because Windows syncs only a file that is open for writing
    with open(path, "r+b") as written:
        os.fsync(written.fileno())


def _put_in_place(new: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(new, folder)
        return
    old = new.with_name(new.name + _MOVED_ASIDE)
    os.replace(folder, old)
    try:
        os.replace(new, folder)
    except BaseException:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
