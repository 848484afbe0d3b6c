"""The ratios of `guards.toml` that a benchmark must not exceed: what costs speed fails where it is measured."""

import fnmatch
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings this one
    import tomli as tomllib

FILE = Path(__file__).with_name("guards.toml")


@dataclass(frozen=True)
class Guard:
    """A limit.

    Attributes:
        case: name of a benchmark, `*` and `?` as in file names.
        device: "cpu" or "cuda", where it holds.
        ratio: of `extra_info`, such as "ours_over_floor".
        at_most: the largest ratio that passes.
    """

    case: str
    device: str
    ratio: str
    at_most: float


@cache
def guards() -> tuple[Guard, ...]:
    """The limits of `guards.toml`."""
    return tuple(Guard(**entry) for entry in tomllib.loads(FILE.read_text(encoding="utf-8"))["guard"])


def check(case: str, info: dict[str, float], device: torch.device) -> None:
    """Raise AssertionError if a ratio of `case` is over its limit on `device`."""
    for guard in guards():
        if guard.device != device.type or not fnmatch.fnmatchcase(case, guard.case.replace("[", "[[]")):
            continue
        assert info[guard.ratio] <= guard.at_most, (
            f"{case}: {guard.ratio} is {info[guard.ratio]:.3f}, over the {guard.at_most:g} of benchmarks/guards.toml"
        )
