"""`xgblora._host`, the C++ extension for CPU tensors: what came of its build."""

import importlib
from functools import cache

from xgblora.ops.extension import RECORD, Extension, read_record

HOST_RECORD = RECORD.with_name("_build_host.json")


@cache
def host_extension() -> Extension:
    """Import the extension that the build left, once a process."""
    return _load(read_record(HOST_RECORD))


def _load(record: dict) -> Extension:
    if not record["built"]:
        return Extension(None, f"not built: {record['reason']}")
    try:
        module = importlib.import_module("xgblora._host")
    except ImportError as error:
        return Extension(None, f"built, but cannot be imported: {error}")
    return Extension(module, f"built with {record['compiler']}, runs {module.instruction_sets()[0]} here")
