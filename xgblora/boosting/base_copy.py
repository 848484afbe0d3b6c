"""`BaseCopy`: the base weights as they were before the first merge, which a rollback starts from again.

Where the model was loaded from safetensors files, and a weight is bit for bit what lies there, the file is the copy. It
stays mapped into memory, so that it may be replaced or removed, and none of it is resident until a rollback reads it.
One that was written to in its place meanwhile is refused: it has other bytes, or too few of them. What lies in no file
is copied.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from xgblora.adapters import AdapterSet
from xgblora.errors import InputError


class BaseCopy:
    """The mergeable weights of a model, as they are now.

    Args:
        adapters: on the model, nothing merged yet.

    Attributes:
        nbytes: of what was copied to the host.
    """

    def __init__(self, adapters: AdapterSet):
        self._adapters, self.nbytes = adapters, 0
        self._kept: list[Callable[[], Tensor]] = []
        self._files = _Files(adapters.model)
        for name, layer in adapters.layers.items():
            for matrix in layer.matrices if layer.mergeable else ():
                self._kept.append(self._files.reader_of(f"{name}.weight", matrix) or self._copied(matrix))

    def weights(self) -> Iterator[Tensor]:
        """The base on the host, in the order of `adapters.weights()`.

        Raises:
            InputError: a file was written to since it was opened.
        """
        self._files.refuse_written()
        return (kept() for kept in self._kept)

    @torch.no_grad()
    def restore(self) -> None:
        """Write the base into the weights again.

        Raises:
            InputError: a file was written to since it was opened; no weight was changed.
        """
        for weight, base in zip(self._adapters.weights(), self.weights(), strict=True):
            weight.copy_(base)

    def _copied(self, matrix: Tensor) -> Callable[[], Tensor]:
        copied = matrix.detach().to("cpu", copy=True)
        self.nbytes += copied.nbytes
        return lambda: copied


@dataclass(frozen=True, eq=False)
class _File:
    """A safetensors file, and what was known of it when it was opened.

    Attributes:
        path: where it was.
        tensors: the file, mapped.
        opened: the same file, whatever is called `path` later.
        state: bytes and nanoseconds of the last write.
    """

    path: Path
    tensors: safe_open
    opened: BinaryIO
    state: tuple[int, int]

    @classmethod
    def of(cls, path: Path) -> "_File":
        """The file at `path`; OSError or SafetensorError if it is none."""
        with open(path, "rb") as opened:
            tensors = safe_open(path, framework="pt")
            # a handle of its own, so that a torn file leaves none open
            return cls(path, tensors, os.fdopen(os.dup(opened.fileno()), "rb"), _state_of(opened))

    def __del__(self):
        self.opened.close()


class _Files:
    """The safetensors files that a model was loaded from, as far as they are still there."""

    def __init__(self, model: nn.Module):
        self._files: dict[str, _File] = {}
        self._used: set[_File] = set()
        for path in _paths(model):
            try:
                file = _File.of(path)
            except (OSError, SafetensorError):
                continue
            self._files |= dict.fromkeys(file.tensors.keys(), file)

    def refuse_written(self) -> None:
        """Raise InputError if a file that weights are read from was written to; one that was replaced was not."""
        for file in self._used:
            if _state_of(file.opened) != file.state:
                raise InputError(
                    f"{file.path}: was written to since the run opened it, and rounds are rolled back from the base in "
                    "it; put the base's file back and resume from a checkpoint: those of the run are whole"
                )

    def reader_of(self, name: str, matrix: Tensor) -> Callable[[], Tensor] | None:
        """What reads the weight called `name` in a file, if it is `matrix` in all its values; None: nothing."""
        # the files of a model without a head leave out what the model with one calls it
        known = next((key for key in _ends(name) if key in self._files), None)
        if known is None:
            return None
        file = self._files[known]
        # opened anew: what was read to be compared is resident as long as its file is open
        with safe_open(file.path, framework="pt") as looked:
            found = looked.get_tensor(known)
            # some layers store the transpose
            for turned in (False, True) if found.ndim == 2 else ():
                stored = found.T if turned else found
                if stored.shape == matrix.shape and torch.equal(stored.to(matrix), matrix):
                    self._used.add(file)
                    return partial(_read, file.tensors, known, turned)
        return None


def _read(file: safe_open, key: str, turned: bool) -> Tensor:
    found = file.get_tensor(key)
    return found.T if turned else found


def _state_of(opened: BinaryIO) -> tuple[int, int]:
    found = os.fstat(opened.fileno())
    return found.st_size, found.st_mtime_ns


def _ends(name: str) -> Iterator[str]:
    """`name`, and what is left of it without its first parts."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts) - 1))


def _paths(model: nn.Module) -> list[Path]:
    """The safetensors files in a model's folder, or in its snapshot of the hub that was downloaded before."""
    name = getattr(model, "name_or_path", "")
    if not name:
        return []
    # here, because it brings packages that a model of one's own does without
    from xgblora.boosting.base_files import base_folder

    folder = base_folder(name, getattr(model.config, "_commit_hash", None))
    return sorted(folder.glob("*.safetensors")) if folder else []
