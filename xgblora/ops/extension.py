"""`xgblora._C`, the CUDA extension: what came of its build."""

import importlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

# the number that csrc/rounding.h has for each weight dtype (`CODE`)
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
RECORD = Path(__file__).resolve().parent.parent / "_build.json"


@dataclass(frozen=True)
class Extension:
    """The extension as this process finds it.

    Attributes:
        module: `xgblora._C`, None where there is none.
        state: one line: what it was built with, or why it cannot be used.
    """

    module: ModuleType | None
    state: str


@cache
def extension() -> Extension:
    """Import the extension that the build left, once a process. Needs no GPU."""
    return _load(read_record(RECORD))


def read_record(path: Path) -> dict:
    """What csrc/build.py wrote of an extension."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"built": False, "reason": "xgblora was not installed with pip"}


def _load(record: dict) -> Extension:
    if not record["built"]:
        return Extension(None, f"not built: {record['reason']}")
    try:
        module = importlib.import_module("xgblora._C")
    except ImportError as error:
        return Extension(None, f"built, but cannot be imported: {error}")
    architectures = ", ".join(f"sm_{number}" for number in record["architectures"])
    return Extension(module, f"built with nvcc {record['nvcc']} for {architectures} + PTX {record['ptx']}")
