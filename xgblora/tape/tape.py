"""The tape: all that a zeroth-order run decided, in about 25 bytes a step.

A step is fixed by its seed, its projected gradients and its learning rate, since the directions are noise of the seed
(MeZO, Malladi et al. 2023, section 2.1); the moments of an optimizer follow from the steps before it. Base model + tape
give the trained weights again, without data and without a forward pass (`xgblora.replaying`).

The file is `XGBLTAPE`, the length of the header (uint32), the header (JSON), and records, all little-endian. A record
is one letter, its fields, and the crc32 of everything up to there, so that a byte that was changed, a record that is
missing, and two that changed places are all found:

    S step: uint32 step, float32 learning rate, int64 seed, float32 projected gradient x q
    X a step whose losses were not finite: the same, and nothing was changed by it
    M merge: uint32 round, uint32 step, float64 shrinkage, uint32 crc32 of the merged adapter
    I start: uint32 n, uint32 P, and P numbers in n bytes (`StartRecord`); the adapter, measured, that the round starts
      with that the last merge began, or at the beginning the first one
    R rollback: uint32 round
    K keep: nothing more; the adapter in training, as it stands, is the one that a take brings back
    T take: nothing more; the adapter that was kept last is the one in training again
    E end: 32 bytes, sha256 of the trained layers
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from xgblora.atomic_file import replacing
from xgblora.errors import InputError
from xgblora.spelling import one_line
from xgblora.tape.header import TapeHeader
from xgblora.tape.records import (
    EndRecord,
    KeepRecord,
    MergeRecord,
    Record,
    RollbackRecord,
    StartRecord,
    StepRecord,
    TakeRecord,
    checksum,
)

FORMAT = "xgblora-tape-2"
MAGIC = b"XGBLTAPE"
_LENGTH = struct.Struct("<I")
_CRC = struct.Struct("<I")
_MERGE = struct.Struct("<IIdI")
_COUNT = struct.Struct("<I")
# the letter of a record, and the count behind it where its length is not that of every other
_HEAD = 1 + _COUNT.size
# bytes; the layers' names are most of it, 60 each
_LONGEST_HEADER = 1 << 26
_FEW_DIRECTIONS = 1024
# steps are read from the device in batches of this many, so that training waits for it seldom
_PENDING_STEPS = 1024


class Tape:
    """The tape of a run, in memory; `ZeroOrder` and `Booster` write to it.

    Args:
        header: what holds for the whole run.
    """

    def __init__(self, header: TapeHeader):
        self.header = header
        self._step = struct.Struct(f"<Ifq{header.step.directions}f")
        text = json.dumps({"format": FORMAT, **header.to_json()}).encode()
        self._bytes = bytearray(MAGIC + _LENGTH.pack(len(text)) + text)
        self._crc = zlib.crc32(self._bytes)
        self._bytes += _CRC.pack(self._crc)
        self._pending: list[tuple[int, int, Tensor]] = []

    def record_step(self, step: int, seed: int, lr: Tensor, applied: Tensor, projected_grads: Tensor) -> None:
        """Record a step from what lies on the device: `lr` fp32 [1], `applied` a bool scalar, gradients fp32 [q]."""
        self._pending.append((step, seed, torch.cat((lr, applied.view(1).float(), projected_grads))))
        if len(self._pending) >= _PENDING_STEPS:
            self._read_pending()

    def record_merge(self, round: int, step: int, shrinkage: float, adapters: Tensor) -> None:
        """Record that the adapter `adapters`, fp32 [P] on the host, was merged after `step`, shrunken."""
        self._append(b"M" + _MERGE.pack(round, step, shrinkage, checksum(adapters)))

    def record_start(self, adapter: Tensor) -> None:
        """Record the measured adapter, fp32 [P], that the round in training starts with."""
        start = StartRecord.of(adapter)
        self._append(b"I" + _COUNT.pack(len(start.packed)) + _COUNT.pack(start.numbers) + start.packed)

    def record_rollback(self, round: int) -> None:
        """Record that the weights after `round` came back."""
        self._append(b"R" + struct.pack("<I", round))

    def record_keep(self) -> None:
        """Record that the adapter in training was kept, in place of the one kept before."""
        self._append(b"K")

    def record_take(self) -> None:
        """Record that the adapter that was kept came back."""
        self._append(b"T")

    def record_end(self, sha256: str) -> None:
        """Record that training ended with layers of this digest."""
        self._append(b"E" + bytes.fromhex(sha256))

    def go_on_from(self, earlier: "Tape") -> None:
        """Become `earlier`, the tape of a checkpoint, and record on from there."""
        self.header, self._bytes, self._crc = earlier.header, bytearray(earlier.to_bytes()), earlier._crc
        self._pending.clear()

    def to_bytes(self, start: int = 0) -> bytes:
        """The file, from byte `start` on."""
        self._read_pending()
        return bytes(self._bytes[start:])

    def size_after(self, steps: int, merges: int, measured: int = 0) -> int:
        """Bytes of the file when `steps` more steps and `merges` more merges are recorded, and the end.

        With `measured` bytes in each start that the merges bring.
        """
        starts = {b"I" + _COUNT.pack(measured): merges} if measured else {}
        records = {b"S": steps, b"M": merges, b"E": 1, **starts}
        return len(self.to_bytes()) + sum(n * (self._length(head) + _CRC.size) for head, n in records.items())

    @property
    def size(self) -> int:
        """Bytes so far."""
        self._read_pending()
        return len(self._bytes)

    def records(self, start: int = 0) -> Iterator[Record]:
        """All records, in order; with `start`, an earlier `size`, those that came since."""
        self._read_pending()
        header = len(MAGIC) + _LENGTH.size
        header += _LENGTH.unpack_from(self._bytes, len(MAGIC))[0] + _CRC.size
        position = max(header, start)
        while position < len(self._bytes):
            length = self._length(bytes(self._bytes[position : position + _HEAD]))
            yield self._decode(bytes(self._bytes[position : position + length]))
            position += length + _CRC.size

    def skipped_steps(self) -> int:
        """Steps whose losses were not finite."""
        return sum(isinstance(record, StepRecord) and not record.applied for record in self.records())

    def save(self, path: str | Path) -> None:
        """Write the file, atomically."""
        with replacing(path) as temporary:
            temporary.write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | Path, *, torn_end: bool = False) -> "Tape":
        """Read what `save` wrote.

        Args:
            path: the file.
            torn_end: take the whole records of a file whose last one is cut off, as a killed process leaves it.

        Raises:
            InputError: the file is missing, no tape, or damaged.
        """
        path = Path(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        try:
            return cls._from_bytes(content, torn_end)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
            raise InputError(f"{path}: not a readable tape ({one_line(error, limit=200)})") from None

    @classmethod
    def _from_bytes(cls, content: bytes, torn_end: bool) -> "Tape":
        if not content.startswith(MAGIC):
            raise ValueError("it does not begin like one")
        (length,) = _LENGTH.unpack_from(content, len(MAGIC))
        start = len(MAGIC) + _LENGTH.size
        if length > _LONGEST_HEADER:
            raise ValueError(f"its header has {length} bytes")
        entry = json.loads(content[start : start + length])
        if entry.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        header = TapeHeader.from_json(entry)
        # a step holds a number for each, and nobody writes more of them than a file has room for
        if not 1 <= header.step.directions <= max(len(content), _FEW_DIRECTIONS):
            raise ValueError(f"it has {header.step.directions} directions")
        tape = cls(header)
        if not content.startswith(bytes(tape._bytes)):
            raise ValueError("its header is damaged")
        position = len(tape._bytes)
        while position < len(content):
            length = tape._length(content[position : position + _HEAD])
            end = position + length + _CRC.size
            if end > len(content):
                if torn_end:
                    break
                raise ValueError("its last record is torn")
            tape._append(content[position : position + length])
            if tape._bytes[-_CRC.size :] != content[end - _CRC.size : end]:
                raise ValueError(f"it is damaged at byte {position}")
            position = end
        return tape

    def _length(self, head: bytes) -> int:
        """Bytes of a record that begins with `head`, `_HEAD` bytes or all there are; its crc not counted."""
        letter = head[:1]
        if letter == b"I":
            # one that is torn before it says its length is not whole, whatever that is
            packed = _COUNT.unpack_from(head, 1)[0] if len(head) == _HEAD else 0
            return _HEAD + _COUNT.size + packed
        lengths = {b"S": self._step.size, b"X": self._step.size, b"M": _MERGE.size, b"R": 4, b"K": 0, b"T": 0, b"E": 32}
        if letter not in lengths:
            raise ValueError(f"there is no record {letter!r}")
        return 1 + lengths[letter]

    def _decode(self, record: bytes) -> Record:
        letter, fields = record[:1], record[1:]
        if letter in b"SX":
            step, lr, seed, *projected_grads = self._step.unpack(fields)
            return StepRecord(step, lr, seed, tuple(projected_grads), letter == b"S")
        if letter == b"M":
            return MergeRecord(*_MERGE.unpack(fields))
        if letter == b"I":
            return StartRecord(_COUNT.unpack_from(fields, _COUNT.size)[0], fields[2 * _COUNT.size :])
        if letter == b"R":
            return RollbackRecord(*struct.unpack("<I", fields))
        if letter in b"KT":
            return KeepRecord() if letter == b"K" else TakeRecord()
        return EndRecord(fields)

    def _append(self, record: bytes) -> None:
        self._read_pending()
        self._write(record)

    def _write(self, record: bytes) -> None:
        self._crc = zlib.crc32(record, self._crc)
        self._bytes += record + _CRC.pack(self._crc)

    def _read_pending(self) -> None:
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        read = torch.stack([values for *_, values in pending]).tolist()
        for (step, seed, _), (lr, applied, *projected_grads) in zip(pending, read, strict=True):
            self._write((b"S" if applied else b"X") + self._step.pack(step, lr, seed, *projected_grads))
