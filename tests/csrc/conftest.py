"""The headers of csrc compiled for the CPU, where there is a C++ compiler; and the sources of the build."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.fixtures.files import imported
from xgblora.ops.backends import cuda
from xgblora.ops.extension import Extension
from xgblora.ops.merge_rank1 import ROUNDINGS

CSRC = Path(__file__).parent.parent.parent / "csrc"
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class HostLibrary:
    """The functions of host.cpp; those of `xgblora._C` under its names.

    Attributes:
        blocks, lanes: the launch that `merge_rank1` plays.
        launches: the number of tiles of each call of it.
    """

    def __init__(self, path: Path):
        self.blocks, self.lanes, self.launches = 7, 256, []
        self._functions = ctypes.CDLL(str(path))
        self._functions.xgblora_rounding_word.restype = ctypes.c_uint32
        self._functions.xgblora_plan_merge.restype = ctypes.c_int64

    def philox(self, counter: list[int], key: list[int]) -> list[int]:
        """Ten rounds of Philox4x32 of four counter words and two key words."""
        words = (ctypes.c_uint32 * 4)()
        self._functions.xgblora_philox((ctypes.c_uint32 * 4)(*counter), (ctypes.c_uint32 * 2)(*key), words)
        return list(words)

    def rounding_words(self, seed: int, first: int) -> list[int]:
        """Words first .. first + 7 of `seed`, made together."""
        words = (ctypes.c_uint32 * 8)()
        self._functions.xgblora_rounding_words(ctypes.c_uint64(seed), ctypes.c_int64(first), words)
        return list(words)

    def rounding_word(self, seed: int, index: int) -> int:
        """Word `index` of `seed`, made alone."""
        return self._functions.xgblora_rounding_word(ctypes.c_uint64(seed), ctypes.c_int64(index))

    def noise_block(self, distribution: str, seed: int, first: int) -> list[float]:
        """256 elements from element 4 `first` on, by lanes of one 64-bit word."""
        made = (ctypes.c_float * 256)()
        gaussian = int(distribution == "gaussian")
        self._functions.xgblora_noise_block(gaussian, ctypes.c_uint64(seed), ctypes.c_uint64(first), made)
        return list(made)

    def power_series(self, count: int) -> list[float]:
        """The `count` numbers of power_series.h: series of -4 log, sine and cosine, ln 2, 2 pi 2^-32."""
        made = (ctypes.c_double * count)()
        self._functions.xgblora_power_series(made)
        return list(made)

    def merge_elements(self, rounding: str, weights: Tensor, updates: Tensor, words: Tensor, remainders: Tensor):
        """weights[i] += updates[i] in place; flat tensors, `words` uint32 in an int32 tensor, `remainders` int16."""
        self._functions.xgblora_merge_elements(
            ctypes.c_int64(DTYPE_CODES[weights.dtype]),
            ROUNDINGS.index(rounding),
            ctypes.c_int64(weights.numel()),
            *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (weights, updates, words, remainders)),
        )

    def plan_merge(self, table: int, count: int) -> int:
        """As of `xgblora._C`."""
        return self._functions.xgblora_plan_merge(ctypes.c_void_p(table), ctypes.c_int64(count))

    def merge_rank1(self, table, count, tiles, rounding, scale, seed, device, stream):
        """As of `xgblora._C`, as `blocks` blocks of `lanes` threads one after the other."""
        self.launches.append(tiles)
        misaligned = self._functions.xgblora_merge_rank1(
            ctypes.c_void_p(table),
            ctypes.c_int64(count),
            ctypes.c_int64(tiles),
            ROUNDINGS.index(rounding),
            ctypes.c_float(scale),
            ctypes.c_uint64(seed),
            self.blocks,
            self.lanes,
        )
        assert not misaligned, "a 16-byte access was not aligned"


@pytest.fixture(scope="session")
def host(tmp_path_factory) -> HostLibrary:
    """The device code of csrc as the C++ compiler of this machine makes it."""
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    library = tmp_path_factory.mktemp("csrc") / "host.so"
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    source = Path(__file__).with_name("host.cpp")
    done = subprocess.run(
        [compiler, *flags, "-Werror", f"-I{CSRC}", source, "-o", library], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return HostLibrary(library)


@pytest.fixture
def merge_on_host(host, monkeypatch):
    """`merge_rank1_` of CUDA tensors, for CPU tensors: the same table, and the same tiles on the CPU.

    Takes the operation's arguments and the launch; gives the number of tiles of each launch.
    """
    monkeypatch.setattr(cuda, "extension", lambda: Extension(host, "on the CPU"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))

    def merge(*arguments, blocks: int = 7, lanes: int = 256) -> list[int]:
        host.blocks, host.lanes, host.launches = blocks, lanes, []
        cuda.merge_rank1_(*arguments)
        return host.launches

    return merge


MARGIN = 16


class Case:
    """Layers inside poisoned storage, each with `offset` elements between a 16-byte boundary and its first one.

    Args:
        shapes: [N, K] of each layer.
        dtypes, transposed: of the weights, in turn; a transposed weight is stored as [K, N].
        offset, adapter_offset: elements before each weight, and before each `a` and `b`.
    """

    def __init__(self, shapes, dtypes, *, transposed=(False,), offset=0, adapter_offset=0, device="cpu"):
        generator = torch.Generator().manual_seed(0)
        self.device = device
        self.storages, self.weights, self.remainders, self.a, self.b = [], [], [], [], []
        for index, (outputs, inputs) in enumerate(shapes):
            dtype, turn = dtypes[index % len(dtypes)], transposed[index % len(transposed)]
            shape = (inputs, outputs) if turn else (outputs, inputs)
            weight = self._inside(torch.randn(shape, generator=generator).to(dtype), offset)
            plane = torch.randint(-99, 99, shape, generator=generator).to(torch.int16)
            # every other plane begins elsewhere than its weight does
            plane = self._inside(plane, 0 if index % 2 else offset)
            self.weights.append(weight.T if turn else weight)
            self.remainders.append(plane.T if turn else plane)
            self.a.append(self._inside(torch.randn(inputs, generator=generator), adapter_offset))
            self.b.append(self._inside(torch.randn(outputs, generator=generator), adapter_offset))

    def _inside(self, values: Tensor, offset: int) -> Tensor:
        """A copy of `values` with margins of poison around it."""
        poison = 12345 if values.dtype == torch.int16 else float("nan")
        size = offset + values.numel() + 2 * MARGIN
        storage = torch.full((size,), poison, dtype=values.dtype, device=self.device)
        self.storages.append(storage)
        view = storage[MARGIN + offset : MARGIN + offset + values.numel()].view(values.shape)
        return view.copy_(values)

    def arguments(self, rounding: str, scale: float = 0.37, seed: int = 3) -> tuple:
        """Arguments of `merge_rank1_`."""
        return self.weights, self.a, self.b, self.remainders, scale, rounding, seed

    def bytes(self) -> Tensor:
        """All storage, margins included, as bytes."""
        return torch.cat([storage.view(torch.uint8) for storage in self.storages])


@pytest.fixture
def make_case():
    """The class `Case`."""
    return Case


@pytest.fixture(scope="session")
def build() -> ModuleType:
    """csrc/build.py, as setup.py imports it."""
    yield from _imported("build")


@pytest.fixture(scope="session")
def build_extension(build) -> ModuleType:
    """csrc/build_extension.py, likewise."""
    yield from _imported("build_extension")


@pytest.fixture(scope="session")
def build_host(build) -> ModuleType:
    """csrc/build_host.py, likewise."""
    yield from _imported("build_host")


def _imported(name: str):
    pytest.importorskip("setuptools", reason="needs setuptools")
    with imported(CSRC / f"{name}.py") as module:
        yield module
