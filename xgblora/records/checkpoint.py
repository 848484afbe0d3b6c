"""Checkpoints: the arena, the ledger, the tape and transformers' own state, never the base weights.

Of full-parameter training the arena is all there is: an fp32 number for each parameter, and no ledger.

A checkpoint is a folder that appears whole or not at all. Its manifest names every file with its size and sha256, the
base model, and what of the flags must not change, so that a torn or changed file, and a checkpoint of another run, are
refused before anything is loaded.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from safetensors.torch import load_file, save_file

from xgblora.adapters import Origin, Trainable
from xgblora.atomic_file import remove_leftovers
from xgblora.boosting import AdaptiveMerging, Booster, FullFineTuning, Ledger, MergedAdapter
from xgblora.errors import InputError
from xgblora.tape import Tape

FORMAT = "xgblora-checkpoint-2"
# its files are the same; it says less of what decides the rest of the run
_FORMAT_TO_READ_ONLY = "xgblora-checkpoint-1"
MANIFEST = "manifest.json"
ADAPTERS = "adapters.safetensors"
LEDGER = "boosters.safetensors"
TAPE = "tape.bin"
ROUND = "round.safetensors"
EXAMPLES = "examples.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)")
# nanoseconds; clocks of file systems tick every few milliseconds, of FAT every two seconds
_SETTLED_AFTER = 2_000_000_000
# transformers' own names; to ask its trainer for them would import it wherever a checkpoint is read
NEEDED_BY_TRANSFORMERS = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


class State(Protocol):
    """Something of a run that writes and takes up a file of its own."""

    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> None: ...


def save(
    folder: Path,
    adapters: Trainable,
    booster: Booster | FullFineTuning,
    adaptive: AdaptiveMerging | None = None,
    hard: State | None = None,
) -> None:
    """Write what is in training, the ledger, the tape if there is one, the adaptive round, and what was found hard."""
    save_file({"master": adapters.arena.master}, folder / ADAPTERS)
    booster.save_ledger(folder / LEDGER)
    if booster.tape is not None:
        booster.tape.save(folder / TAPE)
    if adaptive is not None:
        adaptive.save(folder / ROUND)
    if hard is not None:
        hard.save(folder / EXAMPLES)


def seal(folder: Path, origin: Origin, *, step: int, epoch: float, run: dict, unlogged: dict) -> None:
    """Write the manifest of `folder`, whose files are complete.

    Args:
        origin: the base model and how it was adapted.
        step, epoch: how far training was.
        run: what else decides the run, and must be the same in one that goes on from here; JSON values.
        unlogged: the losses since the last log entry, as the trainer takes them up again; JSON values.
    """
    manifest = {
        "format": FORMAT,
        "step": step,
        "epoch": epoch,
        "origin": origin.to_json(),
        "run": run,
        "unlogged": unlogged,
        "files": {path.name: _facts(path) for path in sorted(folder.iterdir())},
    }
    text = json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def check(folder: Path, origin: Origin, run: dict, needed: Sequence[str] = NEEDED_BY_TRANSFORMERS) -> dict:
    """The manifest of `folder`, if it is a whole checkpoint of such a run.

    Args:
        folder, origin, run: as of `seal`.
        needed: files without which such a run cannot go on.

    Raises:
        InputError: it is not; one line says why, and names another checkpoint beside it that is.
    """
    try:
        return _manifest_of_run(folder, origin, run, needed)
    except InputError as error:
        raise InputError(f"resume_from_checkpoint={folder}: {error}{_offer(folder, origin, run, needed)}") from None


def load(
    folder: Path,
    adapters: Trainable,
    booster: Booster | FullFineTuning,
    adaptive: AdaptiveMerging | None = None,
    hard: State | None = None,
) -> None:
    """Set a run to what `save` wrote: base + ledger, what is in training, the tape up to there, and the rest.

    Raises:
        InputError: a file cannot be read, or belongs to another run; `check` says so before.
    """
    master = load_file(folder / ADAPTERS, device=str(adapters.arena.master.device))["master"]
    if master.shape != adapters.arena.master.shape:
        raise InputError(
            f"resume_from_checkpoint={folder}: {ADAPTERS} has {tuple(master.shape)} numbers, and what is trained "
            f"{tuple(adapters.arena.master.shape)}"
        )
    booster.load_ledger(folder / LEDGER)
    if booster.tape is not None:
        booster.tape.go_on_from(Tape.load(folder / TAPE))
    adapters.arena.master.copy_(master)
    adapters.arena.restore()
    if adaptive is not None:
        adaptive.load(folder / ROUND)
    if hard is not None:
        hard.load(folder / EXAMPLES)


def ledger_of(folder: Path) -> Ledger:
    """The ledger in the checkpoint `folder`, the adapter in training as its last booster unless it is still empty.

    Raises:
        InputError: the folder is no whole checkpoint.
    """
    try:
        manifest = verified_manifest(folder)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    if Origin.from_json(manifest["origin"]).full_parameters:
        raise InputError(f"{folder}: is of full-parameter training, which has no boosters; xgblora-replay takes it")
    ledger = Ledger.load(folder / LEDGER)
    master = load_file(folder / ADAPTERS)["master"]
    if ledger.is_trained(master):
        last = MergedAdapter(len(ledger) + 1, manifest["step"], manifest["epoch"], ledger.full_scale, master)
        ledger.add(last)
    return ledger


def verified_manifest(folder: Path) -> dict:
    """The manifest of `folder`, after comparing every file with it.

    Raises:
        InputError: a file is missing, torn, changed, or does not belong there.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError("there is no such folder")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        digest = manifest.pop("sha256")
    except FileNotFoundError:
        raise InputError(f"is no whole checkpoint, there is no {MANIFEST} in it") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{MANIFEST} is damaged") from None
    if digest != _digest(manifest):
        raise InputError(f"{MANIFEST} is damaged or was changed")
    if manifest.get("format") not in (FORMAT, _FORMAT_TO_READ_ONLY):
        raise InputError(f"its format is {manifest.get('format')}, not {FORMAT}")
    present = {path.name for path in folder.iterdir() if path.name != MANIFEST and not path.name.startswith(".")}
    for name in sorted(manifest["files"].keys() | present):
        if name not in present:
            raise InputError(f"is no whole checkpoint, there is no {name} in it")
        if name not in manifest["files"]:
            raise InputError(f"{name} does not belong to it")
        if _facts(folder / name) != manifest["files"][name]:
            raise InputError(f"{name} is damaged or was changed")
    if _NAME.fullmatch(folder.name) and step_of(folder) != manifest["step"]:
        raise InputError(f"was renamed, it is of step {manifest['step']}")
    return manifest


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoint folders in `folder`, the newest first, whole or not."""
    found = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def remove_leftovers_in(folder: Path) -> None:
    """Undo what a killed process left half done of the checkpoints in `folder`."""
    remove_leftovers(folder, "checkpoint-*")


def step_of(folder: Path) -> int:
    """The step that the name of a checkpoint folder says, 0 for any other name."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else 0


def newer_than(folder: Path, step: int) -> list[Path]:
    """The checkpoints in `folder` past `step`, whole or not, the newest first."""
    return [path for path in checkpoints_in(folder) if step_of(path) > step]


def remove_newer(folder: Path, step: int) -> None:
    """Remove the checkpoints in `folder` past `step`, whole or not, the newest first."""
    for path in newer_than(folder, step):
        shutil.rmtree(path, ignore_errors=True)


def refuse_newer(folder: Path, step: int) -> None:
    """Raise InputError if a run that goes on from `step` in `folder` would find whole checkpoints of its own future.

    After a kill `last` would take one of them, while the run's other files end where they were cut.
    """
    for path in newer_than(folder, step):
        try:
            verified_manifest(path)
        except InputError:
            continue
        raise InputError(
            f"resume_from_checkpoint={folder / f'checkpoint-{step}'}: {path} is newer; resume from last, choose "
            "another output_dir, or give --overwrite to drop the newer ones"
        )


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint in `folder` that is whole, and one line for each newer one that is not."""
    damaged = []
    for path in checkpoints_in(folder):
        try:
            verified_manifest(path)
        except InputError as error:
            damaged.append(f"{path}: {error}")
        else:
            return path, damaged
    return None, damaged


def _manifest_of_run(folder: Path, origin: Origin, run: dict, needed: Sequence[str]) -> dict:
    manifest = verified_manifest(folder)
    if manifest["format"] == _FORMAT_TO_READ_ONLY:
        raise InputError(
            "is of an older version, which did not say all that decides the rest of a run; export it, or train anew"
        )
    # as the file has it, without tuples
    ours, theirs = json.loads(json.dumps(run)), manifest["run"]
    for name in [*ours, *(theirs.keys() - ours.keys())]:
        if ours.get(name) != theirs.get(name):
            raise InputError(f"it is of another run: {name} is {theirs.get(name)} there and {ours.get(name)} here")
    origin.refuse_other(Origin.from_json(manifest["origin"]), "it is of another run")
    for name in needed:
        if name not in manifest["files"]:
            raise InputError(f"was written with --save_only_model, there is no {name} to go on with")
    return manifest


def _offer(folder: Path, origin: Origin, run: dict, needed: Sequence[str]) -> str:
    """What else can be resumed from beside `folder`, as the end of a message."""
    for other in checkpoints_in(folder.parent):
        try:
            _manifest_of_run(other, origin, run, needed)
        except InputError:
            continue
        return f"; {other} is whole"
    return ""


def _facts(path: Path) -> dict:
    """Size and sha256; a file that has not changed since it was hashed is not hashed again: 1.3 GB/s on one core."""
    if not path.is_file():
        return {}
    state = path.stat()
    # one that changed a moment ago may change again within the same tick of the file system's clock
    if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) < _SETTLED_AFTER:
        return _hashed(path)
    return _hashed_before(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)


@lru_cache(maxsize=1024)
def _hashed_before(path: Path, *state: int) -> dict:
    return _hashed(path)


def _hashed(path: Path) -> dict:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            # by pieces: of full parameters the arena is as large as the model
            while piece := file.read(1 << 24):
                digest.update(piece)
            return {"bytes": file.tell(), "sha256": digest.hexdigest()}
    except OSError:
        return {}


def _digest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
