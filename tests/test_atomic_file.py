import os
import stat
import threading

import pytest

from xgblora.atomic_file import replacing, write_text


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
