"""The records of a tape: one for each kind of decision; `xgblora.tape.tape` says how they are written."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class StepRecord:
    """A zeroth-order step; `seed` is that of its first direction, `applied` is False if its losses were not finite."""

    step: int
    lr: float
    seed: int
    projected_grads: tuple[float, ...]
    applied: bool


@dataclass(frozen=True)
class MergeRecord:
    """A merge after step `step`; `checksum` is the crc32 of the adapter, merged at `shrinkage` times its scale."""

    round: int
    step: int
    shrinkage: float
    checksum: int


@dataclass(frozen=True)
class StartRecord:
    """The adapter, measured, that the round starts with that the last merge began; at the beginning, the first round.

    Attributes:
        numbers: P, of the adapter.
        packed: the upper halves of its fp32 numbers, which is all that there is to a bf16 number, and the lower ones
            behind them where they are not all zero; deflated, since half of the numbers are the zeros of `b`.
    """

    numbers: int
    packed: bytes

    @classmethod
    def of(cls, adapter: Tensor) -> "StartRecord":
        """The record of `adapter`, fp32 [P]."""
        bits = adapter.cpu().numpy().astype("<f4").view("<u4")
        upper, lower = (bits >> 16).astype("<u2"), bits.astype("<u2")
        kept = upper.tobytes() + (lower.tobytes() if lower.any() else b"")
        return cls(len(bits), zlib.compress(kept))

    @property
    def adapter(self) -> Tensor:
        """fp32 [P] on the host.

        Raises:
            ValueError: what is packed is not P numbers.
        """
        unpacking = zlib.decompressobj()
        try:
            kept = np.frombuffer(unpacking.decompress(self.packed, 4 * self.numbers + 2), "<u2")
        except zlib.error as error:
            raise ValueError(f"a start cannot be unpacked ({error})") from None
        if not unpacking.eof or len(kept) not in (self.numbers, 2 * self.numbers):
            raise ValueError(f"a start does not hold {self.numbers} numbers")
        upper, lower = kept[: self.numbers].astype("<u4"), kept[self.numbers :].astype("<u4")
        bits = upper << 16 | lower if len(lower) else upper << 16
        return torch.from_numpy(bits.view("<f4").astype(np.float32))


@dataclass(frozen=True)
class RollbackRecord:
    """Back to the weights after round `round`."""

    round: int


@dataclass(frozen=True)
class KeepRecord:
    """The adapter in training is kept, as the best of its round so far."""


@dataclass(frozen=True)
class TakeRecord:
    """Back to the adapter that was kept last, without moments."""


@dataclass(frozen=True)
class EndRecord:
    """The end of training; `sha256` is the digest of the trained layers (`xgblora.adapters.identity.trained_hash`)."""

    sha256: bytes


Record = StepRecord | MergeRecord | StartRecord | RollbackRecord | KeepRecord | TakeRecord | EndRecord


def checksum(adapters: Tensor) -> int:
    """crc32 of an fp32 tensor's bytes."""
    return zlib.crc32(adapters.contiguous().cpu().numpy().tobytes())
