"""What `xgblora-export` and `xgblora-replay` share: the base model they start from, and the place of their result."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xgblora.adapters import Origin
from xgblora.errors import InputError
from xgblora.records import checkpoint
from xgblora.records.run_folder import refuse_unwritable
from xgblora.runs.language_model import load_model, refuse_missing_folder
from xgblora.scoring.forms import form_named
from xgblora.spelling import file_size, number_of, one_line

# measured in tests/destinations
_ABOUT_BFLOAT16 = (
    "bfloat16: OpenVINO (2026.4) reads these bits as float16 without a word, and onnxruntime (1.32) cannot run them on "
    "a CPU; xgblora-export RUN --dtype float32 writes them wide"
)


@dataclass
class ResultArguments:
    """From which base model, to where, on what."""

    model_name: str | None = field(
        default=None, metadata={"help": "The base model, where it is not (or no longer) what the run calls it."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder to write; beside the run without it."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier result in output_dir."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Let code that comes with the model run on this machine."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Leave the GPU alone, if there is one."})

    @property
    def device(self) -> torch.device:
        """The GPU, if there is one and it may be used."""
        return torch.device("cuda" if torch.cuda.is_available() and not self.use_cpu else "cpu")


def base_name(origin: Origin, given: str | None) -> str:
    """Folder or hub name of the base model: the one given, else what the run was started from.

    Raises:
        InputError: neither names one, or it is a folder that is not there.
    """
    if given is not None:
        refuse_missing_folder(given)
        return given
    if origin.model is None:
        raise InputError("model_name is missing: the run does not say what its base model is called")
    try:
        refuse_missing_folder(origin.model)
    except InputError as error:
        raise InputError(f"{error} (the run calls its base model so); give --model_name") from None
    return origin.model


def load_base(origin: Origin, args: ResultArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model of a run, in the dtype that the run had, and its tokenizer.

    Raises:
        InputError: it cannot be found or read.
    """
    name = base_name(origin, args.model_name)
    return load_model(
        name,
        dtype=origin.dtype,
        device=args.device,
        trust_remote_code=args.trust_remote_code,
        revision=origin.revision if args.model_name is None else None,
        labels=origin.labels,
        seed=origin.seed,
    )


def run_of(path: Path) -> tuple[Path, str]:
    """The folder beside whose files a result of `path` belongs, and how the result's name ends.

    That of a file is the folder it lies in. Nothing is ever put into a checkpoint, which would not be whole any more:
    there it is the run, and the name says which checkpoint it was.
    """
    folder = path if path.is_dir() else path.parent
    return (folder.parent, f"-{folder.name}") if is_checkpoint(folder) else (folder, "")


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` is a checkpoint, whole or not."""
    return folder in checkpoint.checkpoints_in(folder.parent) or (folder / checkpoint.MANIFEST).exists()


def refuse_place(folder: Path, *, marker: str, overwrite: bool, needed: list[Path]) -> None:
    """Raise InputError unless a result may become `folder`, before any work is done.

    Args:
        folder: will be replaced whole.
        marker: a file that an earlier result of this kind has; without it the folder holds something else.
        overwrite: whether an earlier result may be replaced.
        needed: files and folders that must outlive it.
    """
    refuse_unwritable(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise InputError(f"output_dir={folder}: is there already; choose another, or give --overwrite")
    for path in needed:
        if path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"output_dir={folder}: holds {path}, which is needed; choose another")
    if not (folder / marker).is_file():
        raise InputError(f"output_dir={folder}: holds something else than an earlier result; choose another")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what a file system says while `folder` is written (it is full, it is gone) into an InputError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"output_dir={folder}: cannot be written ({reason})") from None


def written(path: Path, what: str) -> str:
    """The line that says what was written and how large it is."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"wrote {path}: {what}, {file_size(sum(file.stat().st_size for file in files))}"


def written_model(folder: Path, origin: Origin, boosters: int, *, dtype: str | None = None) -> list[str]:
    """What to say about a model of `origin` in `folder`, trained, with so many boosters in it.

    Args:
        dtype: of its weights, where it is not that of the run.
    """
    what = "with all its parameters trained" if origin.full_parameters else f"with {counted(boosters, origin)} merged"
    dtype = dtype or origin.dtype
    auto_class = form_named(origin.architecture).auto_class.__name__
    return [
        written(folder, f"the model {what}, {dtype}"),
        *([_ABOUT_BFLOAT16] if dtype == "bfloat16" else []),
        f'load it: model = {auto_class}.from_pretrained("{folder}", dtype="auto")',
    ]


def counted(boosters: int, origin: Origin) -> str:
    """ "24 boosters of rank 1"."""
    return f"{number_of(boosters, 'booster')} of rank {origin.rank}"
