"""xgblora: gradient boosting with rank-1 adapters, by forward passes alone or by backpropagation.

Public names are imported on first use, so that `import xgblora.ops` does not import transformers.
"""

import importlib
import warnings

__version__ = "0.1.0"

_HOMES = {
    "AdapterSet": "xgblora.adapters",
    "FullParameters": "xgblora.adapters",
    "Rank1Linear": "xgblora.adapters",
    "attach": "xgblora.adapters",
    "detach": "xgblora.adapters",
    "ZeroOrder": "xgblora.zo",
    "Booster": "xgblora.boosting",
    "FullFineTuning": "xgblora.boosting",
    "Ledger": "xgblora.boosting",
    "MergePolicy": "xgblora.boosting",
    "Population": "xgblora.population",
    "Tape": "xgblora.tape",
    "start_tape": "xgblora.replaying",
    "replay": "xgblora.replaying",
    "export_merged": "xgblora.boosting.export",
    "export_peft": "xgblora.boosting.peft_adapter",
    "XGBLoRAArguments": "xgblora.training",
    "XGBLoRATrainer": "xgblora.training",
    "InputError": "xgblora.errors",
}
__all__ = [*_HOMES, "ops"]
# names of before, which still work
_RENAMED = {"Unboosted": "FullFineTuning"}


def __getattr__(name: str):
    if name == "ops":
        return importlib.import_module("xgblora.ops")
    if name in _RENAMED:
        warnings.warn(f"xgblora.{name} is now xgblora.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _HOMES:
        raise AttributeError(f"module 'xgblora' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
