"""`xgblora-export`: take the result of a run away, as a model, as a LoRA adapter, or as its boosters."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import AutoConfig

from xgblora.adapters import Origin, detach
from xgblora.boosting import Ledger
from xgblora.boosting.export import export_merged
from xgblora.boosting.truncation import TruncationCost
from xgblora.cli.exit import exits_with_one_line
from xgblora.cli.flags import FlagParser
from xgblora.cli.result import (
    ResultArguments,
    base_name,
    counted,
    is_checkpoint,
    load_base,
    refuse_place,
    run_of,
    writing,
    written,
    written_model,
)
from xgblora.destinations import DESTINATIONS, Adapter
from xgblora.destinations.formats import FORMATS
from xgblora.destinations.vllm import about_rank as about_rank_in_vllm
from xgblora.errors import InputError
from xgblora.records import checkpoint
from xgblora.records.run_folder import RunFolder, refuse_unwritable
from xgblora.replaying import rebuild
from xgblora.runs.head import whole_head
from xgblora.scoring.forms import form_named
from xgblora.tape import Tape

DESCRIPTION = """Take the result of a run away. RUN is the folder of a finished run, a checkpoint of any run (the
adapter in training becomes its last booster), or a boosters.safetensors."""


@dataclass
class ExportArguments:
    """What to take away."""

    format: Literal["merged", "peft", "gguf", "mlx", "ledger"] = field(
        default="merged",
        metadata={
            "help": "merged: the whole model, which from_pretrained loads like any other; peft: all boosters as one "
            "LoRA adapter, for PEFT and for servers that take adapters; gguf: the same for llama.cpp; mlx: the same "
            "for mlx-lm; ledger: the boosters as they are, from which xgblora makes the trained weights again bit for "
            "bit."
        },
    )
    dtype: Literal["float32"] | None = field(
        default=None, metadata={"help": "With merged: 16-bit weights are written as these numbers in 32 bits."}
    )
    rank: int | None = field(
        default=None,
        metadata={"help": "Of an adapter: at most this rank, by the nearest adapter that has it; says what it costs."},
    )
    destination: Literal["vllm", "llama.cpp", "transformers"] | None = field(
        default=None, metadata={"help": "With peft: for which program; what it asks of an adapter is checked first."}
    )
    round: int | None = field(default=None, metadata={"help": "Only the first ROUND boosters."})


@exits_with_one_line
def main(arguments: list[str] | None = None) -> None:
    """Entry point; `arguments` defaults to those of the command line."""
    path, export, args = parse(sys.argv[1:] if arguments is None else arguments)
    ledger = first_rounds(boosters_at(path), export.round)
    folder = Path(args.output_dir) if args.output_dir else default_folder(path, export)
    if export.format == "merged":
        lines = write_merged(path, ledger, folder, args, dtype=export.dtype)
    elif export.format in FORMATS:
        lines = write_adapter(path, ledger, folder, args, export)
    else:
        lines = write_ledger(path, ledger, folder, overwrite=args.overwrite)
    print("\n".join(lines))


def parse(arguments: list[str]) -> tuple[Path, ExportArguments, ResultArguments]:
    """RUN and the flags.

    Raises:
        InputError: a flag is wrong, or RUN is missing.
    """
    parser = FlagParser(
        (ExportArguments, ResultArguments),
        usage="xgblora-export RUN [--format merged|peft|gguf|mlx|ledger] [--flag value ...]",
        description=DESCRIPTION,
    )
    parser.rename("destination", "for")
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder, checkpoint folder, or file of boosters")
    export, args, rest = parser.parse(arguments)
    if rest.run is None:
        raise InputError("RUN is missing: give a run folder, a checkpoint or a boosters.safetensors; see --help")
    if export.dtype is not None and export.format != "merged":
        raise InputError(f"dtype={export.dtype}: goes with --format merged; adapters and boosters are float32 always")
    if export.rank is not None and export.format not in FORMATS:
        raise InputError(f"rank={export.rank}: goes with --format {', '.join(FORMATS)}")
    if export.rank is not None and export.rank < 1:
        raise InputError(f"rank={export.rank}: must be 1 or more")
    if export.destination is not None and export.format != "peft":
        raise InputError(f"for={export.destination}: goes with --format peft")
    return Path(rest.run), export, args


def boosters_at(path: Path) -> Ledger:
    """The boosters of a run folder, a checkpoint folder or a ledger file.

    Raises:
        InputError: there are none, or they are damaged.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such folder or file")
    if path.is_file():
        return Ledger.load(path)
    if is_checkpoint(path):
        return checkpoint.ledger_of(path)
    run = RunFolder(path)
    if not run.ledger.is_file():
        raise InputError(f"{path}: {_what_else(run)}")
    return Ledger.load(run.ledger)


def _what_else(run: RunFolder) -> str:
    """Why a run folder has no boosters, and what can be given in its place."""
    if run.tape.is_file() and Tape.load(run.tape, torn_end=True).header.origin.full_parameters:
        return f"is of full-parameter training, which has no boosters; its model is {run.model}, or xgblora-replay's"
    newest, _ = checkpoint.newest_whole(run.path)
    if newest is not None:
        return f"the run has not finished, it has no {run.ledger.name}; give its newest checkpoint, {newest}"
    if run.tape.is_file():
        return f"the run has not finished, it has no {run.ledger.name}; xgblora-replay makes a model from its tape"
    return f"is not the folder of a run, there is no {run.ledger.name} in it"


def first_rounds(ledger: Ledger, rounds: int | None) -> Ledger:
    """The ledger of the first `rounds` rounds, all without it.

    Raises:
        InputError: there are not so many.
    """
    if rounds is None:
        return ledger
    if not 1 <= rounds <= len(ledger):
        raise InputError(f"round={rounds}: must be from 1 to {len(ledger)}, the number of boosters")
    return ledger.first(rounds)


def default_folder(path: Path, export: ExportArguments) -> Path:
    """Where the export goes if nothing else is said; its name says what it is of."""
    run, which = run_of(path)
    rounds = f"-round-{export.round}" if export.round is not None else ""
    rank = f"-rank-{export.rank}" if export.rank is not None else ""
    dtype = f"-{export.dtype}" if export.dtype is not None else ""
    return run / f"exported-{export.format}{which}{rounds}{rank}{dtype}"


def write_merged(path: Path, ledger: Ledger, folder: Path, args: ResultArguments, *, dtype: str | None) -> list[str]:
    """Write the base model with all boosters merged into its weights; `dtype` is that of the run where it is None."""
    needed = [path, Path(base_name(ledger.origin, args.model_name))]
    refuse_place(folder, marker="config.json", overwrite=args.overwrite, needed=needed)
    model, tokenizer = load_base(ledger.origin, args)
    layers = rebuild(model, ledger).adapters.layers
    kept_apart = [name for name, layer in layers.items() if not layer.mergeable]
    if kept_apart:
        raise InputError(
            f"format=merged: the weights of {len(kept_apart)} layers cannot be written ({kept_apart[0]}: quantised, "
            "or of a kind of its own); use --format peft"
        )
    detach(model, fold=False)
    if dtype is not None:
        model.to(getattr(torch, dtype))
    with writing(folder):
        export_merged(model, folder, tokenizer=tokenizer)
    return written_model(folder, ledger.origin, len(ledger), dtype=dtype)


def write_adapter(
    path: Path, ledger: Ledger, folder: Path, args: ResultArguments, export: ExportArguments
) -> list[str]:
    """Write all boosters as one LoRA adapter."""
    form = FORMATS[export.format]
    refuse_place(folder, marker=form.marker, overwrite=args.overwrite, needed=[path])
    if args.model_name is not None:
        ledger = replace(ledger, origin=replace(ledger.origin, model=args.model_name, revision=None))
    origin = ledger.origin
    full = sum(term.count for term in ledger.terms()) * origin.rank
    adapter = Adapter(min(export.rank or full, full), origin.layers, origin.model, _skeleton(origin))
    checked = DESTINATIONS[export.destination].check(adapter) if export.destination else []
    with writing(folder):
        cost = _write(ledger, folder, adapter.skeleton, args, export)
    return [
        *checked,
        written(folder, f"{counted(len(ledger), origin)} as a LoRA adapter of rank {adapter.rank}"),
        *([about_rank(export.rank, full, cost)] if export.rank is not None else []),
        *([about_rank_in_vllm(adapter.rank)] if export.format == "peft" else []),
        f"load it: {form.load_it(folder, origin.model or 'BASE', _loaded(origin))}",
    ]


def _write(
    ledger: Ledger, folder: Path, skeleton: nn.Module | None, args: ResultArguments, export: ExportArguments
) -> TruncationCost | None:
    write, origin = FORMATS[export.format].write, ledger.origin
    if export.format != "peft":
        if origin.labels is not None:
            raise InputError(f"format={export.format}: takes no classification head; use --format merged or peft")
        return write(ledger, folder, base_model=skeleton, rank=export.rank)
    whole: dict[str, torch.Tensor] = {}
    if origin.labels is not None:
        # a head is no adapter: it leaves whole, with all boosters in it
        whole = whole_head(rebuild(load_base(origin, args)[0], ledger).adapters.model)
    task = form_named(origin.architecture).peft_task
    return write(ledger, folder, base_model=skeleton, rank=export.rank, task_type=task, whole=whole)


def _loaded(origin: Origin) -> str:
    """The call that loads the base of a run."""
    labels = "" if origin.labels is None else f", num_labels={len(origin.labels)}"
    auto_class = form_named(origin.architecture).auto_class.__name__
    return f'{auto_class}.from_pretrained("{origin.model or "BASE"}", dtype="{origin.dtype}"{labels})'


def _skeleton(origin: Origin) -> nn.Module | None:
    """The base model without numbers, to see what its layers are; None if its configuration is not to be had."""
    try:
        config = AutoConfig.from_pretrained(
            origin.model, revision=origin.revision, local_files_only=True, trust_remote_code=False
        )
        with torch.device("meta"):
            return form_named(origin.architecture).auto_class.from_config(config)
    except Exception:  # not on this machine, code of its own, no language model: PEFT looks at the layers itself then
        return None


def about_rank(rank: int, full: int, cost: TruncationCost | None) -> str:
    """The line that says what a smaller rank cost."""
    if cost is None:
        return f"rank {rank} was asked for: all boosters together have rank {full}, nothing is lost"
    return (
        f"rank {rank} of {full}: {100 * cost.overall:.3g}% of the update is lost (Frobenius norm), at most "
        f"{100 * cost.by_layer[cost.worst_layer]:.3g}% in one layer ({cost.worst_layer})"
    )


def write_ledger(path: Path, ledger: Ledger, folder: Path, *, overwrite: bool) -> list[str]:
    """Write the boosters as they are."""
    refuse_unwritable(folder)
    file = RunFolder(folder).ledger
    if file.exists() and file.resolve() in (path.resolve(), RunFolder(path).ledger.resolve()):
        raise InputError(f"output_dir={folder}: holds {file}, which is needed; choose another")
    if file.exists() and not overwrite:
        raise InputError(f"output_dir={folder}: holds a {file.name} already; choose another, or give --overwrite")
    with writing(folder):
        ledger.save(file)
    return [
        written(file, counted(len(ledger), ledger.origin)),
        f'load it: booster = xgblora.replaying.rebuild(base_model, xgblora.Ledger.load("{file}"))',
    ]
