import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from xgblora import atomic_file
from xgblora.atomic_file import remove_leftovers, replacing, replacing_folder, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_with_its_text_and_nothing_beside_it(tmp_path):
    write_text(tmp_path / "deeper" / "a.txt", "täxt\n")
    assert (tmp_path / "deeper" / "a.txt").read_bytes() == "täxt\n".encode()
    assert names(tmp_path / "deeper") == ["a.txt"]


def test_an_exception_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="torn"), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("torn")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_interrupt_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_the_old_file_stays_readable_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent, "a rename is atomic only within one file system"
        assert temporary.suffix == path.suffix, "writers that look at the suffix must see the real one"
    assert path.read_text() == "new"


def test_a_failing_rename_leaves_no_temporary(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError), replacing(tmp_path / "folder") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == ["folder"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "text")
        assert os.umask(umask) == umask, "the umask of the process is left as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == mode


def test_a_concurrent_reader_sees_one_whole_version(tmp_path):
    path = tmp_path / "a.txt"
    versions = [letter * 100_000 for letter in "ab"]
    write_text(path, versions[0])
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(50):
        write_text(path, versions[turn % 2])
    done.set()
    reader.join()
    assert seen <= set(versions)
    assert seen


def put(folder, content):
    """Replace `folder` by one that holds `content` in a.txt."""
    with replacing_folder(folder) as temporary:
        (temporary / "a.txt").write_text(content)


class TestReplacingFolder:
    """Folders that appear whole or not at all."""

    def test_the_folder_appears_with_its_files_and_nothing_beside_it(self, tmp_path):
        put(tmp_path / "deeper" / "folder", "new")
        assert (tmp_path / "deeper" / "folder" / "a.txt").read_text() == "new"
        assert names(tmp_path / "deeper") == ["folder"]

    def test_one_that_is_there_already_is_replaced_whole(self, tmp_path):
        put(tmp_path / "folder", "old")
        (tmp_path / "folder" / "b.txt").write_text("only in the old one")
        put(tmp_path / "folder", "new")
        assert names(tmp_path) == ["folder"]
        assert names(tmp_path / "folder") == ["a.txt"]
        assert (tmp_path / "folder" / "a.txt").read_text() == "new"

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_an_exception_leaves_the_old_folder_and_no_temporary(self, tmp_path, error):
        put(tmp_path / "folder", "old")
        with pytest.raises(error), replacing_folder(tmp_path / "folder") as temporary:
            (temporary / "a.txt").write_text("half")
            raise error
        assert names(tmp_path) == ["folder"]
        assert (tmp_path / "folder" / "a.txt").read_text() == "old"

    def test_a_failing_rename_brings_the_old_folder_back(self, tmp_path, monkeypatch):
        put(tmp_path / "folder", "old")
        replace = os.replace

        def failing(source, target):
            if target == tmp_path / "folder" and not str(source).endswith(".old"):
                raise OSError("no space left")
            return replace(source, target)

        monkeypatch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="no space left"):
            put(tmp_path / "folder", "new")
        assert names(tmp_path) == ["folder"]
        assert (tmp_path / "folder" / "a.txt").read_text() == "old"

    @pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
    def test_permissions_follow_the_umask(self, tmp_path):
        before = os.umask(0o027)
        try:
            put(tmp_path / "folder", "new")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


KILLED_WHILE_REPLACING = """
import importlib.util, os, shutil, signal, sys

spec = importlib.util.spec_from_file_location("atomic_file", sys.argv[1])
atomic_file = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic_file)
calls = 0

def killing(function):
    def call(*arguments, **keywords):
        global calls
        calls += 1
        if calls == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return call

for name in ("replace", "fsync", "unlink", "rmdir"):
    setattr(os, name, killing(getattr(os, name)))
shutil.rmtree = killing(shutil.rmtree)
with atomic_file.replacing_folder(sys.argv[2]) as temporary:
    (temporary / "a.txt").write_text("new")
"""


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_a_folder_that_is_killed_while_it_is_replaced_is_the_old_or_the_new_one(tmp_path):
    """Killed before the n-th rename, sync or removal, for every n: what was moved aside comes back."""
    found, killed = [], True
    while killed:
        folder = tmp_path / f"{len(found)}" / "folder"
        put(folder, "old")
        command = [
            sys.executable,
            "-S",
            "-c",
            KILLED_WHILE_REPLACING,
            atomic_file.__file__,
            folder,
            str(len(found) + 1),
        ]
        ending = subprocess.run(command, capture_output=True)
        killed = ending.returncode == -signal.SIGKILL
        assert killed or ending.returncode == 0, ending.stderr
        remove_leftovers(folder.parent, "folder")
        assert names(folder.parent) == ["folder"]
        found.append((folder / "a.txt").read_text())
    # two syncs and the rename of the old one come first; the last run was not killed
    assert found == ["old"] * 4 + ["new"] * (len(found) - 4)
    assert len(found) == 9


class TestLeftovers:
    """What a killed process leaves."""

    def test_half_written_files_and_folders_go_and_nothing_else(self, tmp_path):
        for name in (".tape.bin.x1.bin", ".tape.bin", "tape.bin", ".other.bin.x1.bin"):
            (tmp_path / name).write_text("")
        (tmp_path / ".run-3.x1").mkdir()
        (tmp_path / ".run-3.x1" / "a.txt").write_text("")
        remove_leftovers(tmp_path, "tape.bin")
        remove_leftovers(tmp_path, "run-*")
        assert names(tmp_path) == [".other.bin.x1.bin", ".tape.bin", "tape.bin"]

    def test_a_folder_that_was_moved_aside_comes_back_only_where_none_is(self, tmp_path):
        for name in (".run-1.x1.old", ".run-2.x1.old", "run-2"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "name.txt").write_text(name)
        remove_leftovers(tmp_path, "run-*")
        assert names(tmp_path) == ["run-1", "run-2"]
        assert (tmp_path / "run-1" / "name.txt").read_text() == ".run-1.x1.old"
        assert (tmp_path / "run-2" / "name.txt").read_text() == "run-2"

    def test_a_folder_that_is_not_there_has_none(self, tmp_path):
        remove_leftovers(tmp_path / "missing", "run-*")
