"""Where the tests of the kernels run: natively on a CUDA device, else on the CPU through Triton's interpreter."""

import importlib
import os
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from xgblora.ops.choice import available

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available()


def _switch_on_the_interpreter() -> None:
    """Make kernels that are imported from now on run on the CPU.

    Triton looks at the variable when a function is decorated. Where another test has imported Triton already
    (transformers does), its own functions such as `tl.sum` are made for compiling; they are decorated again.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    if "triton.language.standard" in sys.modules:
        language = sys.modules["triton.language"]
        standard = importlib.reload(sys.modules["triton.language.standard"])
        for name, value in vars(standard).items():
            if not name.startswith("_") and name in vars(language):
                setattr(language, name, value)


if INTERPRETED:
    _switch_on_the_interpreter()


@pytest.fixture(autouse=True)
def _one_thread():
    """The interpreter runs on one thread; torch's threads beside it only take turns with other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def device() -> torch.device:
    """The device whose tensors the kernels take in this run; skips where the interpreter cannot run them."""
    function = available("perturb", "cpu")["triton"]
    if INTERPRETED and isinstance(function, str):
        pytest.skip(function)
    return torch.device("cpu" if INTERPRETED else "cuda")


@dataclass
class Rank1Case:
    """Inputs of `rank1_linear` and of its backward, and what they give in fp64."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float
    grad: Tensor

    @property
    def forward_arguments(self) -> tuple:
        """Arguments of `rank1_linear`."""
        return self.x, self.weight, self.bias, self.a, self.b, self.scale

    @property
    def backward_arguments(self) -> tuple:
        """Arguments of `rank1_linear_backward` but the last."""
        return self.grad, self.x, self.weight, self.a, self.b, self.scale

    def _in_groups(self, rows: Tensor) -> Tensor:
        return rows.double().reshape(self.a.shape[0], -1, rows.shape[-1])

    def expected(self) -> Tensor:
        """y in fp64, [..., N]."""
        x = self._in_groups(self.x)
        y = x @ self.weight.double().T + self.scale * (x @ self.a.double().unsqueeze(2)) * self.b.double().unsqueeze(1)
        if self.bias is not None:
            y += self.bias.double()
        return y.view(*self.x.shape[:-1], -1)

    def expected_gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """dx, da and db in fp64."""
        x, grad, a, b = (self._in_groups(self.x), self._in_groups(self.grad), self.a.double(), self.b.double())
        t, u = x @ a.unsqueeze(2), grad @ b.unsqueeze(2)
        dx = (grad @ self.weight.double() + self.scale * u * a.unsqueeze(1)).view(self.x.shape)
        return dx, self.scale * (u * x).sum(1), self.scale * (t * grad).sum(1)


@pytest.fixture
def rank1_case(device):
    """A function that makes a `Rank1Case`; `a` and `b` are slices of the rows of an arena [G, P]."""

    def make(rows, groups, inputs, outputs, dtype, *, adapter_dtype=None, bias=True, shape=None) -> Rank1Case:
        generator = torch.Generator().manual_seed(rows + 7 * inputs + 31 * outputs)

        def normals(*size, of=dtype):
            return torch.randn(*size, generator=generator).to(device=device, dtype=of)

        arena = normals(groups, inputs + outputs + 8, of=adapter_dtype or dtype)
        return Rank1Case(
            x=normals(*(shape or (rows,)), inputs),
            weight=normals(outputs, inputs) * inputs**-0.5,
            bias=normals(outputs) if bias else None,
            a=arena[:, 3 : 3 + inputs],
            b=arena[:, 5 + inputs : 5 + inputs + outputs],
            scale=0.7,
            grad=normals(*(shape or (rows,)), outputs),
        )

    return make


@pytest.fixture
def assert_as_accurate():
    """A function that holds a kernel's error against fp64 below twice that of eager code in the same dtype.

    The rule is quack's (Dao-AILab), its tiny constant relative to the largest value: where one dot product decides
    every error, as in a backward of one row, eager code may happen to round it almost exactly.
    """

    def check(result: Tensor, eager: Tensor, expected: Tensor) -> None:
        assert result.shape == eager.shape == expected.shape
        assert result.dtype == eager.dtype
        assert result.is_contiguous()
        error, eager_error = ((value.double() - expected).abs().max().item() for value in (result, eager))
        assert error < 2 * eager_error + 1e-6 * max(1.0, expected.abs().max().item())

    return check
