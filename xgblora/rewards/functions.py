"""Reward functions: `FILE.py:function`, where `reward(prompt, completion, row)` gives a number.

A reward's file is a program of somebody's own, so it is loaded in the processes that run it and nowhere else; here it
is only looked for.
"""

import importlib.util
import inspect
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
            InputError: the file raises, has no such function, or one that cannot be called as a reward is.
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
        self._refuse_other_arguments(function)
        return function

    def _refuse_other_arguments(self, function: Callable) -> None:
        """Now, and not for every completion of a run."""
        about = f"reward={self.path}:{self.function}: must be a function of (prompt, completion, row)"
        if inspect.iscoroutinefunction(function):
            raise InputError(f"{about} that gives a number, and is async")
        try:
            arguments = inspect.signature(function)
        except ValueError:
            # of a function in C nothing is known
            return
        with in_one_line(TypeError, about=f"{about}: "):
            arguments.bind("", "", {})


def parse_rewards(specs: Sequence[str], weights: Sequence[float] | None = None) -> tuple[Reward, ...]:
    """The rewards that a command line names.

    Args:
        specs: `FILE.py:function`, one or more.
        weights: one for each; None: 1.

    Raises:
        InputError: something else is named, a file is missing, there are not as many weights as rewards, or all are 0.
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
    if not any(weights):
        raise InputError(f"reward_weights={' '.join(f'{one:g}' for one in weights)}: one at least must not be 0")
    if len({reward.name for reward in rewards}) < len(rewards):
        raise InputError(f"reward={' '.join(specs)}: one of them is there twice")
    return tuple(rewards)
