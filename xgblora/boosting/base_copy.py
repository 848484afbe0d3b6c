"""`BaseCopy`: the base weights as they were before the first merge, which a rollback starts from again.

Where the model was loaded from safetensors files, and a weight is bit for bit what lies there, the file is the copy. It
stays mapped into memory, so that it may be replaced or removed, and none of it is resident until a rollback reads it.
What lies in no file is copied.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from xgblora.adapters import AdapterSet


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
        files = _Files(adapters.model)
        for name, layer in adapters.layers.items():
            for matrix in layer.matrices if layer.mergeable else ():
                self._kept.append(files.reader_of(f"{name}.weight", matrix) or self._copied(matrix))

    def __getitem__(self, index: int) -> Tensor:
        """The weight that is number `index` of `adapters.weights()`, on the host."""
        return self._kept[index]()

    @torch.no_grad()
    def restore(self) -> None:
        """Write the base into the weights again."""
        for index, weight in enumerate(self._adapters.weights()):
            weight.copy_(self[index])

    def _copied(self, matrix: Tensor) -> Callable[[], Tensor]:
        copied = matrix.detach().to("cpu", copy=True)
        self.nbytes += copied.nbytes
        return lambda: copied


class _Files:
    """The safetensors files that a model was loaded from, as far as they are still there."""

    def __init__(self, model: nn.Module):
        self._files: dict[str, tuple[Path, safe_open]] = {}
        for path in _paths(getattr(model, "name_or_path", "")):
            try:
                file = safe_open(path, framework="pt")
            except (OSError, SafetensorError):
                continue
            self._files |= dict.fromkeys(file.keys(), (path, file))

    def reader_of(self, name: str, matrix: Tensor) -> Callable[[], Tensor] | None:
        """What reads the weight called `name` in a file, if it is `matrix` in all its values; None: nothing."""
        # the files of a model without a head leave out what the model with one calls it
        known = next((key for key in _ends(name) if key in self._files), None)
        if known is None:
            return None
        path, file = self._files[known]
        # opened anew: what was read to be compared is resident as long as its file is open
        with safe_open(path, framework="pt") as looked:
            found = looked.get_tensor(known)
            # some layers store the transpose
            for turned in (False, True) if found.ndim == 2 else ():
                stored = found.T if turned else found
                if stored.shape == matrix.shape and torch.equal(stored.to(matrix), matrix):
                    return partial(_read, file, known, turned)
        return None


def _read(file: safe_open, key: str, turned: bool) -> Tensor:
    found = file.get_tensor(key)
    return found.T if turned else found


def _ends(name: str) -> Iterator[str]:
    """`name`, and what is left of it without its first parts."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts) - 1))


def _paths(name: str) -> list[Path]:
    """The safetensors files in a folder, or of a model of the hub that was downloaded before."""
    folder = Path(name)
    if name and not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, local_files_only=True, allow_patterns="*.safetensors"))
        except (OSError, ValueError):
            return []
    return sorted(folder.glob("*.safetensors")) if name else []
