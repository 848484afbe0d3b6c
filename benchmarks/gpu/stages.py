"""The stages in the order of what they are worth, and what a stage file is made of: parts.

A new stage is a new file with a function `parts(setting) -> Iterable[Part]`, and its line in `STAGES`. This file
imports no torch: the process that watches over the stages stays light, and no fault of a GPU reaches it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """A stage of the suite.

    Attributes:
        name: of its file in this folder.
        title: what it finds out.
        estimate: seconds that it takes on one H100, as far as is known.
        bound: seconds after which it is stopped, so that the next ones have their time.
    """

    name: str
    title: str
    estimate: float
    bound: float


STAGES = (
    Stage("device", "device, versions, ceilings", 20, 45),
    Stage("checks", "every implementation against the reference", 70, 100),
    Stage("exactness", "the step bit for bit", 60, 80),
    Stage("step", "the step against its floor and its peers", 70, 100),
    Stage("kernels", "operations against their floors", 45, 70),
    Stage("gpu_tests", "the tests marked gpu", 80, 100),
    Stage("tuning", "plans of rank1_linear, with what time is left", 40, 3600),
)


@dataclass(frozen=True)
class Setting:
    """What a stage runs on.

    Attributes:
        device_type: "cuda", or "cpu" in a rehearsal.
        tiny: a rehearsal's shapes, seconds instead of minutes.
        folder: for files that only this run needs.
        deadline: `time.time()` after which the stage is stopped.
    """

    device_type: str
    tiny: bool
    folder: Path
    deadline: float


@dataclass(frozen=True)
class Part:
    """A piece of a stage that can fail, hang or be left out without the others.

    Attributes:
        name: unique in its stage.
        run: gives records, dictionaries of what JSON can hold; one with `"passed": False` fails the part.
        estimate: seconds; with less time left the part is skipped.
        bound: seconds after which it counts as hung and is stopped.
    """

    name: str
    run: Callable[[], Iterable[dict]]
    estimate: float
    bound: float


class NotHere(Exception):
    """Raised by a part that cannot run on this machine; the message says what is missing. The part is skipped."""
