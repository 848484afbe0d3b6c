"""The eager reference of each operation: it defines what every backend must return, and runs where none can."""

from collections.abc import Callable

_REFERENCES: dict[str, Callable] = {}


def register_eager(operation: str, function: Callable) -> None:
    """Declare `function` as the eager reference of `operation`."""
    _REFERENCES[operation] = function


def eager(operation: str) -> Callable:
    """The eager reference of `operation`."""
    return _REFERENCES[operation]


def operations() -> tuple[str, ...]:
    """Names of all registered operations."""
    return tuple(_REFERENCES)
