"""Which texts may stand in one forward: all, those of one range of lengths, or those of one length.

Most models read a text in the same way whatever stands beside it. Some choose their rotary tables by the longest text
of the batch (Ding et al. 2024, LongRoPE, arXiv:2402.13753, has one table up to a length and another beyond), and some
count what pads a text up.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Together:
    """A rule for which texts may stand in one forward.

    Attributes:
        name: what the log calls such texts.
        kind: the length of a text to a number; texts of one number may stand together.
        limits: lengths where one range ends and the next begins.
    """

    name: str
    kind: Callable[[int], int]
    limits: tuple[int, ...] = ()

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """The places of texts of these lengths, in groups that may stand together, the shortest first."""
        groups: dict[int, list[int]] = {}
        for place, length in enumerate(lengths):
            groups.setdefault(self.kind(length), []).append(place)
        return [groups[kind] for kind in sorted(groups)]


ALL = Together("texts of all lengths", lambda length: 0)
ONE_LENGTH = Together("texts of one length", lambda length: length)


def rules_for(model: Any, longest: int) -> list[Together]:
    """The rules to try for texts of up to `longest` tokens, those that run fastest first."""
    limits = _limits_below(getattr(model, "config", None), longest)
    said = " or ".join(map(str, limits))
    one_range = Together(f"texts of one range (up to {said} tokens, or more)", partial(bisect_left, limits), limits)
    return [ALL, *([one_range] if limits else []), ONE_LENGTH]


def _limits_below(config: Any, longest: int) -> tuple[int, ...]:
    """Numbers of positions that a configuration states, below `longest`: where a model may change its tables."""
    limits, parts = set(), [config.to_dict()] if hasattr(config, "to_dict") else []
    while parts:
        for key, value in parts.pop().items():
            if isinstance(value, dict):
                parts.append(value)
            elif "position" in str(key) and type(value) is int and 1 < value < longest:
                limits.add(value)
    return tuple(sorted(limits))
