"""Whatever goes wrong while a result is taken away: it is there whole or not at all, and the same command goes on.

A few faults in CI, always the same ones; more: XGBLORA_FAULTS=300 pytest tests/faults
"""

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.faults.injection import Fault, counted, inject
from xgblora.cli import export, replay

WRITES = ("xgblora.atomic_file.sync_file", "xgblora.atomic_file._sync_folder", "os.replace")
COMMANDS = {
    "merged": (export.main, ("--format=merged",)),
    "peft": (export.main, ("--format=peft",)),
    "ledger": (export.main, ("--format=ledger",)),
    "replay": (replay.main, ()),
}
ENDS = {"disk full": (1, 2), "read-only": (1, 2), "interrupt": (130,), "terminate": (143,)}


def drawn(count: int, seed: int = 0) -> list[tuple[str, Fault]]:
    """So many faults, the commands and the kinds in turn, the calls and the moments at random."""
    chance = random.Random(seed)
    pairs = [(command, kind) for kind in ENDS for command in COMMANDS]
    return [
        (command, Fault(kind, chance.choice(WRITES), chance.random()))
        for command, kind in (pairs[number % len(pairs)] for number in range(count))
    ]


FAULTS = drawn(max(16, int(os.environ.get("XGBLORA_FAULTS", "0")) // 3))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ended(main, *words: object) -> int:
    try:
        main(list(map(str, words)))
    except SystemExit as exit:
        return exit.code or 0
    return 0


@pytest.fixture(scope="module")
def finished(train_tiny, tmp_path_factory) -> Path:
    """A finished run of 4 steps and 2 merges; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return train_tiny(folder, "--max_steps=4", "--xgblora_steps_per_iteration=2", "--save_model=false")


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory):
    """What each command writes where nothing happens, and how often it calls each function that writes."""
    results = {}
    for name, (main, flags) in COMMANDS.items():
        folder = tmp_path_factory.mktemp("whole") / "result"
        with pytest.MonkeyPatch.context() as patch:
            calls = counted(patch, WRITES)
            assert ended(main, finished, *flags, f"--output_dir={folder}") == 0
        results[name] = contents(folder), calls
    return results


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=lambda one: str(one))
def test_a_fault(name, fault, finished, whole, tmp_path, capsys):
    main, flags = COMMANDS[name]
    expected, calls = whole[name]
    before, folder = contents(finished), tmp_path / "there" / "result"
    if not calls[fault.function]:
        pytest.fail(f"{name} never calls {fault.function}")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        came = inject(fault, calls[fault.function], folder, patch)
        status = ended(main, finished, *flags, f"--output_dir={folder}")
    assert came()
    assert status in ENDS[fault.kind]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, said
    assert said[0].startswith(("error: ", "interrupted", "terminated"))
    # whole, if it came after the last rename; else nothing, not even a part under another name
    assert not folder.exists() or contents(folder) in ({}, expected)
    assert contents(folder.parent) in ({}, {Path("result") / path: content for path, content in expected.items()})
    assert contents(finished) == before
    shutil.rmtree(folder, ignore_errors=True)
    assert ended(main, finished, *flags, f"--output_dir={folder}") == 0
    assert contents(folder) == expected
