"""Which base a run is of, kept beside it: a digest of all its weights takes a second a gigabyte, and is taken once.

A run that goes on believes what is kept as long as the model's files are the ones that it was taken of: the same names,
sizes and times, or the same commit of the hub, read by the same transformers into the same dtype.
"""

import json
from pathlib import Path

import transformers
from transformers import PreTrainedModel

from xgblora.adapters import Trainable
from xgblora.adapters.identity import layout_hash
from xgblora.atomic_file import write_text
from xgblora.spelling import dtype_name


def facts_of(model: PreTrainedModel, adapters: Trainable) -> dict | None:
    """What decides the digest of the base's other weights, in JSON values; None where its files are not to be told."""
    name, commit = model.config._name_or_path, getattr(model.config, "_commit_hash", None)
    if name and Path(name).is_dir():
        paths = sorted([*Path(name).glob("*.safetensors"), *Path(name).glob("*.json")])
        files = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}
    elif commit is not None:
        files = commit
    else:
        return None
    return {
        "files": files,
        "transformers": transformers.__version__,
        "dtype": dtype_name(adapters.compute_dtype),
        "layout": layout_hash(adapters.arena.slots),
    }


def kept(path: Path, facts: dict | None) -> str | None:
    """The digest in the file at `path`, if it was taken of a model with these facts."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        return entry["rest"] if facts is not None and entry["facts"] == facts else None
    except (OSError, ValueError, KeyError, TypeError):
        # not there, or not as it was written: the digest is taken anew
        return None


def keep(path: Path, facts: dict | None, rest: str) -> None:
    """Write the digest `rest` of a model with these facts."""
    if facts is not None:
        write_text(path, json.dumps({"facts": facts, "rest": rest}, indent=1) + "\n")
