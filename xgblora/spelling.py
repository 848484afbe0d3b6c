"""How sizes, dtypes and errors are spelled wherever a person reads them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_BINARY = {"GiB": 30, "MiB": 20, "KiB": 10}


def memory_size(size: int, unit: str | None = None, *, digits: int = 1) -> str:
    """ "2.5 MiB".

    Args:
        size: bytes.
        unit: GiB, MiB or KiB; without it the largest that makes 1 or more, or "bytes".
        digits: after the point.
    """
    unit = unit or next((name for name, exponent in _BINARY.items() if size >= 1 << exponent), None)
    return f"{size} bytes" if unit is None else f"{size / (1 << _BINARY[unit]):.{digits}f} {unit}"


def file_size(size: int) -> str:
    """ "2.5 MB", as file managers have it, of `size` bytes."""
    if size < 1000:
        return f"{size} bytes"
    units = ("kB", "MB", "GB", "TB")
    power = min(len(str(size)) - 1, 3 * len(units)) // 3
    return f"{size / 1000**power:.1f} {units[power - 1]}"


def number_of(count: int, thing: str) -> str:
    """ "1 merge", "2 merges", of a `thing` whose plural ends in s."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def dtype_name(dtype: "torch.dtype") -> str:
    """ "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def one_line(error: BaseException, *, kind: bool = False, limit: int | None = None) -> str:
    """The message of an error as one line; the name of its class where it has none.

    Args:
        error: any.
        kind: whether the name of its class is in front of the message.
        limit: the most characters of the message.
    """
    message = " ".join(str(error).split())[:limit]
    return f"{type(error).__name__}: {message}" if kind else message or type(error).__name__
