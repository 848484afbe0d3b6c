"""Triton kernels of xgblora, imported as `xgblora.kernels`; importing the package does not import Triton.

PyPI has another package whose import name is `kernels`, and transformers imports it when it finds one. With the root
of this repository on `sys.path` that import ends here, and is handed on to the other package if it is installed.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path


def _other_package(name: str):
    """The spec of a package `name` that is not this folder, or None."""
    root = Path(__file__).resolve().parent.parent
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != root]
    return PathFinder.find_spec(name, elsewhere)


if __name__ == "kernels":
    _spec = _other_package(__name__)
    if _spec is not None and _spec.loader is not None:
        sys.modules[__name__] = module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[__name__])
