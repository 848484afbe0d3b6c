"""`xgblora-replay`: train again from the tape of a zeroth-order run, without data and without a forward pass."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from xgblora.boosting import Booster
from xgblora.boosting.export import export_merged
from xgblora.boosting.finish import finish, takes_its_boosters
from xgblora.cli.exit import exits_with_one_line
from xgblora.cli.flags import FlagParser
from xgblora.cli.result import (
    ResultArguments,
    base_name,
    counted,
    load_base,
    refuse_place,
    run_of,
    writing,
    written,
    written_model,
)
from xgblora.errors import InputError
from xgblora.records.run_folder import RunFolder, refuse_unwritable
from xgblora.replaying import replay
from xgblora.spelling import number_of
from xgblora.tape import MergeRecord, Record, StepRecord, Tape

DESCRIPTION = """Train again from the tape of a zeroth-order run: the base model and a few bytes a step give the trained
weights again, bit for bit, without data and without a forward pass. RUN is a run folder, finished or not, one of its
checkpoints, or a tape.bin."""


@dataclass
class ReplayArguments:
    """What to do with the model."""

    save_model: bool = field(default=True, metadata={"help": "Write the trained model; false: only check the tape."})
    step: int | None = field(
        default=None, metadata={"help": "Stop after this optimizer step: the model as it was then, 1 to the last step."}
    )


@exits_with_one_line
def main(arguments: list[str] | None = None) -> None:
    """Entry point; `arguments` defaults to those of the command line."""
    path, replaying, args = parse(sys.argv[1:] if arguments is None else arguments)
    file = tape_at(path)
    tape = Tape.load(file, torn_end=True)
    run, which = run_of(path)
    which = which if replaying.step is None else f"{which}-step{replaying.step}"
    folder = Path(args.output_dir) if args.output_dir else run / f"replayed{which}"
    if replaying.save_model:
        needed = [file, Path(base_name(tape.header.origin, args.model_name))]
        refuse_place(folder, marker="config.json", overwrite=args.overwrite, needed=needed)
    records = list(tape.records())
    if replaying.step is not None:
        records = until(records, replaying.step)
    model, tokenizer = load_base(tape.header.origin, args)
    # None: no bar where there is no terminal
    booster, verified = replay(model, tape, tqdm(records, desc="replaying", unit=" records", disable=None))
    whole = tape.header.origin.rest is not None
    size = len(tape.to_bytes())
    print("\n".join(report(records, size, verified, whole=whole, stopped_at=replaying.step)))
    if replaying.save_model:
        finish(booster.adapters, booster, step=last_step(records), epoch=0.0)
        print("\n".join(save(booster, model, tokenizer, folder)))


def parse(arguments: list[str]) -> tuple[Path, ReplayArguments, ResultArguments]:
    """RUN and the flags.

    Raises:
        InputError: a flag is wrong, or RUN is missing.
    """
    parser = FlagParser(
        (ReplayArguments, ResultArguments), usage="xgblora-replay RUN [--flag value ...]", description=DESCRIPTION
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder, checkpoint folder, or tape")
    replaying, args, rest = parser.parse(arguments)
    if rest.run is None:
        raise InputError("RUN is missing: give a run folder or a tape.bin; see --help")
    return Path(rest.run), replaying, args


def tape_at(path: Path) -> Path:
    """The tape of a run folder, or the file itself.

    Raises:
        InputError: there is none.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such folder or file")
    if path.is_file():
        return path
    tape = RunFolder(path).tape
    if not tape.is_file():
        raise InputError(
            f"{path}: there is no {tape.name} in it; only zeroth-order runs leave one, xgblora-export takes the others"
        )
    return tape


def until(records: list[Record], step: int) -> list[Record]:
    """The records up to and with optimizer step `step`, and what was merged after it.

    Raises:
        InputError: the tape has no such step.
    """
    last = last_step(records)
    if not 1 <= step <= last:
        raise InputError(f"step={step}: must be 1 to {last}, the last step of the tape")
    later = (at for at, record in enumerate(records) if isinstance(record, StepRecord) and record.step >= step)
    return records[: next(later, len(records))]


def report(
    records: list[Record], size: int, verified: bool, *, whole: bool = True, stopped_at: int | None = None
) -> list[str]:
    """What was replayed, and whether it is what the run had.

    Args:
        records: those that were replayed.
        size: of the tape, in bytes.
        verified: whether the digest of the trained weights was compared.
        whole: whether the tape knows all weights of the base.
        stopped_at: the step after which the replay was stopped.
    """
    steps = [record for record in records if isinstance(record, StepRecord)]
    skipped = sum(not record.applied for record in steps)
    merges = sum(isinstance(record, MergeRecord) for record in records)
    bytes_a_step = f", {size / len(steps):.1f} bytes a step" if steps else ""
    return [
        f"replayed {number_of(len(steps), 'step')} ({skipped} skipped), {number_of(merges, 'merge')} from a tape of "
        f"{size} bytes{bytes_a_step}",
        _about_weights(verified, whole, stopped_at),
    ]


def _about_weights(verified: bool, whole: bool, stopped_at: int | None) -> str:
    if not verified and stopped_at is not None:
        return f"not verified: the tape has a digest of the weights at its end alone, not of step {stopped_at}"
    if not verified:
        return "not verified: the run was stopped, and its tape has no digest of the weights to compare with"
    if not whole:
        return "verified: the adapted weights are bit for bit those of the run; its older tape does not know the others"
    return "verified: the weights are bit for bit those of the run"


def last_step(records: list[Record]) -> int:
    """The step after which the tape ends, counted from 1; that of a record is counted from 0."""
    return max((record.step + 1 for record in records if isinstance(record, StepRecord)), default=0)


def save(booster: Booster, model, tokenizer, folder: Path) -> list[str]:
    """Write the model that was replayed, or its boosters where the weights cannot hold them."""
    origin, boosters = booster.adapters.origin, len(booster.boosters)
    if takes_its_boosters(booster.adapters):
        with writing(folder):
            export_merged(model, folder, tokenizer=tokenizer)
        return written_model(folder, origin, boosters)
    refuse_unwritable(folder)
    file = RunFolder(folder).ledger
    with writing(folder):
        booster.save_ledger(file)
    return [
        written(
            file, f"{counted(boosters, origin)}, because the weights cannot be written (quantised or of another kind)"
        ),
        f"make an adapter of them: xgblora-export {file} --format peft",
    ]
