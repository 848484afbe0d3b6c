"""Reward functions: `FILE.py:function`, where `reward(prompt, completion, row)` gives a number.

A reward's file is a program of somebody's own, so it is loaded in the processes that run it and nowhere else; here it
is only looked for.
"""

import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xgblora.errors import InputError, in_one_line
from xgblora.tasks.row import did_you_mean


@dataclass(frozen=True)
class Reward:
    """A function that says what a completion is worth.

    Attributes:
        path: its file.
        function: its name in the file.
        weight: what its value is multiplied by in the sum of several.
        name: what figures and messages call it.
    """

    path: str
    function: str
    weight: float = 1.0
    name: str = ""

    def load(self) -> Callable[[str, str, dict], float]:
        """Run the file and give its function, in a process that is the reward's own.

        Raises:
            InputError: the file raises, or has no such function.
        """
        path = Path(self.path).resolve()
        # as `python FILE.py` would, for what lies beside it
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(f"_reward_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        # what somebody else's file raises may be anything
        with in_one_line(Exception, about=f"reward={self.path}: cannot be loaded: "):
            spec.loader.exec_module(module)
        function = getattr(module, self.function, None)
        if not callable(function):
            there = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise InputError(
                f"reward={self.path}:{self.function}: there is no function {self.function} in the file"
                f"{did_you_mean(self.function, there)} (functions: {', '.join(there) or 'none'})"
            )
        return function


def parse_rewards(specs: Sequence[str], weights: Sequence[float] | None = None) -> tuple[Reward, ...]:
    """The rewards that a command line names.

    Args:
        specs: `FILE.py:function`, one or more.
        weights: one for each; None: 1.

    Raises:
        InputError: something else is named, a file is missing, or there are not as many weights as rewards.
    """
    if not specs:
        raise InputError("reward: at least one FILE.py:function is needed")
    weights = [1.0] * len(specs) if weights is None else list(weights)
    if len(weights) != len(specs):
        raise InputError(f"reward_weights: {len(weights)} for {len(specs)} rewards; must be one for each")
    functions = [spec.rpartition(":")[2] for spec in specs]
    rewards = []
    for spec, function, weight in zip(specs, functions, weights, strict=True):
        path = spec.rpartition(":")[0]
        if not path.endswith(".py") or not function.isidentifier():
            raise InputError(f"reward={spec}: must be FILE.py:function")
        if not Path(path).is_file():
            raise InputError(f"reward={spec}: there is no file {path}")
        if not math.isfinite(weight):
            raise InputError(f"reward_weights={weight}: must be a finite number")
        name = function if functions.count(function) == 1 else f"{Path(path).stem}.{function}"
        rewards.append(Reward(path, function, float(weight), name))
    if len({reward.name for reward in rewards}) < len(rewards):
        raise InputError(f"reward={' '.join(specs)}: one of them is there twice")
    return tuple(rewards)
