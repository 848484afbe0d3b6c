"""What a backend says of itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module

import torch
from torch import Tensor

from xgblora.errors import InputError, in_one_line


def _nothing(x: Tensor, weight: Tensor) -> bool:
    return False


@dataclass(frozen=True)
class Backend:
    """One way of running operations, other than eager code.

    Attributes:
        name: what `XGBLORA_BACKEND` calls it, in lower case.
        title: what messages call it, such as "the CUDA extension".
        device_types: the tensors that it is written for, of "cpu" and "cuda".
        modules: by operation, the module that has a function of its name, imported when it is first asked for. The
            function takes and returns what that of `torch.ops.xgblora` does.
        obstacle: why it cannot run tensors of a device type here, in one line; None where it can.
        state: the line in which `xgblora-env` says what it was built with; None where nothing is built.
        variables: the environment variables that it heeds, beside `XGBLORA_BACKEND` and `XGBLORA_STRICT`.
        unchecked: by device type and dtype, why layers of that dtype are not checked there.
        reads_dots: whether its `rank1_linear` of `x` and `weight`, of which it looks at no value, reads the dots that
            `row_dots` made before; where it does not, to make them is a waste.
    """

    name: str
    title: str
    device_types: tuple[str, ...]
    modules: Mapping[str, str]
    obstacle: Callable[[str], str | None]
    state: Callable[[], str] | None = None
    variables: tuple[str, ...] = ()
    unchecked: Mapping[tuple[str, torch.dtype], str] = field(default_factory=dict)
    reads_dots: Callable[[Tensor, Tensor], bool] = _nothing

    def described(self) -> str | None:
        """What `state` says, or in one line why it says nothing; None where nothing is built."""
        if self.state is None:
            return None
        try:
            with in_one_line(Exception):
                said = self.state()
        except InputError as error:
            return f"{self.name}: its state cannot be told: {error}"
        return said if isinstance(said, str) else f"{self.name}: its state is {said!r}, no line"

    def find(self, operation: str, device_type: str) -> Callable | str:
        """The function of `operation`, or in one line why it cannot be used here."""
        try:
            # what the code of another package raises may be anything
            with in_one_line(Exception):
                return self.obstacle(device_type) or getattr(import_module(self.modules[operation]), operation)
        except InputError as error:
            return str(error)
