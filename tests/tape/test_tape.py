"""The tape: what it records, in how many bytes, and that no damage to it goes unseen."""

import json
import math
import random
import re
import zlib
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import xgblora
from xgblora.adapters import Origin
from xgblora.errors import InputError
from xgblora.tape import (
    EndRecord,
    KeepRecord,
    MergeRecord,
    RollbackRecord,
    RoundsHeader,
    StartRecord,
    StepHeader,
    StepRecord,
    TakeRecord,
    Tape,
    TapeHeader,
    checksum,
)

DIGEST = "ab" * 32


def header(directions: int = 1) -> TapeHeader:
    model = nn.ModuleDict({"only": nn.Linear(3, 2)})
    nn.init.ones_(model["only"].weight)
    nn.init.ones_(model["only"].bias)
    adapters = xgblora.attach(model, ["only"], alpha=2.0)
    step = StepHeader(directions, "gaussian", 0.0, "sgd", 0.9, 0.999, 1e-8)
    return TapeHeader(adapters.origin, step, RoundsHeader("remainder"))


def record_step(tape: Tape, step: int, seed: int = 7, lr: float = 0.5, grads=(1.5,), applied: bool = True) -> None:
    tape.record_step(step, seed, torch.tensor([lr]), torch.tensor(applied), torch.tensor(grads))


def small_tape(directions: int = 1, *, end: bool = True) -> Tape:
    """A record of each kind, those of steps two times."""
    tape = Tape(header(directions))
    record_step(tape, 0, seed=-(2**63), grads=[0.25] * directions)
    record_step(tape, 1, seed=2**63 - 1, lr=1e-8, grads=[-3.0] * directions, applied=False)
    tape.record_start(torch.arange(8.0) - 3.5)
    tape.record_merge(1, 2, 0.5, torch.arange(8.0))
    tape.record_rollback(0)
    tape.record_keep()
    tape.record_take()
    if end:
        tape.record_end(DIGEST)
    return tape


def boundaries(tape: Tape) -> list[int]:
    """Where the header and each record end."""
    lengths = {StepRecord: 21 + 4 * tape.header.step.directions, MergeRecord: 25, RollbackRecord: 9, EndRecord: 37}
    lengths |= {KeepRecord: 5, TakeRecord: 5, StartRecord: 13}
    sizes = [lengths[type(record)] + len(getattr(record, "packed", b"")) for record in tape.records()]
    ends = [len(tape.to_bytes()) - sum(sizes)]
    for size in sizes:
        ends.append(ends[-1] + size)
    return ends


def load(path, content: bytes, **options) -> Tape:
    path.write_bytes(content)
    return Tape.load(path, **options)


def refused(path, content: bytes, **options) -> str:
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: ") as raised:
        load(path, content, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("directions", [1, 4])
def test_what_was_recorded_is_read_again(tmp_path, directions):
    tape = small_tape(directions)
    tape.save(tmp_path / "tape.bin")
    again = Tape.load(tmp_path / "tape.bin")
    assert again.header == tape.header
    assert again.to_bytes() == tape.to_bytes() == (tmp_path / "tape.bin").read_bytes()
    assert list(again.records()) == [
        StepRecord(0, 0.5, -(2**63), (0.25,) * directions, True),
        StepRecord(1, torch.tensor(1e-8).item(), 2**63 - 1, (-3.0,) * directions, False),
        StartRecord.of(torch.arange(8.0) - 3.5),
        MergeRecord(1, 2, 0.5, checksum(torch.arange(8.0))),
        RollbackRecord(0),
        KeepRecord(),
        TakeRecord(),
        EndRecord(bytes.fromhex(DIGEST)),
    ]
    assert again.skipped_steps() == 1


def test_a_step_takes_25_bytes_and_4_more_a_further_direction():
    for directions, size in ((1, 25), (4, 37)):
        tape = Tape(header(directions))
        before = len(tape.to_bytes())
        for step in range(2500):
            record_step(tape, step, grads=[0.5] * directions)
        assert len(tape.to_bytes()) - before == 2500 * size
        assert [record.step for record in tape.records()] == list(range(2500))


def test_gradients_that_are_not_finite_are_kept(tmp_path):
    tape = Tape(header(3))
    record_step(tape, 0, grads=[math.nan, math.inf, -math.inf], applied=False)
    (record,) = load(tmp_path / "tape.bin", tape.to_bytes()).records()
    assert math.isnan(record.projected_grads[0])
    assert record.projected_grads[1:] == (math.inf, -math.inf)


def test_a_start_is_kept_to_the_bit(tmp_path):
    adapter = torch.tensor([0.1, -0.0, 1e-45, 3e38, float("inf")])
    tape = Tape(header())
    tape.record_start(adapter)
    (record,) = load(tmp_path / "tape.bin", tape.to_bytes()).records()
    assert torch.equal(record.adapter.view(torch.int32), adapter.view(torch.int32))


def test_a_start_of_16_bit_numbers_takes_less_than_16_bits_for_each_that_is_not_zero():
    a = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    fp32, bf16 = (torch.cat((part, torch.zeros(2000))) for part in (a, a.to(torch.bfloat16).float()))
    assert len(StartRecord.of(bf16).packed) < 2 * 2000 < len(StartRecord.of(fp32).packed)
    for adapter in (fp32, bf16):
        assert torch.equal(StartRecord.of(adapter).adapter, adapter)


@pytest.mark.parametrize(
    ("numbers", "packed"),
    [
        (3, zlib.compress(bytes(2 * 2))),
        (3, zlib.compress(bytes(4 * 3 + 2))),
        (3, zlib.compress(bytes(1 << 20))),
        (3, zlib.compress(bytes(2 * 3))[:-1]),
        (3, b"not deflated"),
    ],
)
def test_a_start_that_does_not_hold_its_numbers_is_refused(numbers, packed):
    with pytest.raises(ValueError, match=r"^a start (does not hold 3 numbers|cannot be unpacked)"):
        _ = StartRecord(numbers, packed).adapter


@pytest.mark.parametrize("measures", [False, True])
def test_how_long_a_tape_will_be_is_known_before(measures):
    tape, start = small_tape(end=False), torch.arange(8.0)
    wanted = tape.size_after(3, 2, len(StartRecord.of(start).packed) if measures else 0)
    for step in range(3):
        record_step(tape, step)
    for round in range(2):
        if measures:
            tape.record_start(start)
        tape.record_merge(round, 3, 1.0, torch.zeros(8))
    tape.record_end(DIGEST)
    assert len(tape.to_bytes()) == wanted


def test_recording_goes_on_from_a_loaded_tape(tmp_path):
    whole, half = small_tape(), small_tape(end=False)
    resumed = load(tmp_path / "tape.bin", half.to_bytes())
    resumed.record_end(DIGEST)
    assert resumed.to_bytes() == whole.to_bytes()
    other = Tape(header())
    record_step(other, 9)
    other.go_on_from(half)
    other.record_end(DIGEST)
    assert other.to_bytes() == whole.to_bytes(), "and what it held before is gone"


def test_a_tape_keeps_the_optimizer_and_how_rounds_start(tmp_path):
    adam = {"optimizer": "adam", "beta1": 0.1 + 0.2, "beta2": 1 / 3, "epsilon": 1e-30}
    step, rounds = replace(header().step, **adam), replace(header().rounds, reinit="warm", colsample=0.7)
    tape = Tape(replace(header(), step=step, rounds=rounds))
    assert load(tmp_path / "tape.bin", tape.to_bytes()).header == tape.header


def test_the_entries_of_both_parts_stand_side_by_side_in_the_file(tmp_path):
    """As they did before the header had parts: an earlier version's file is read, and written again to the byte."""
    origin = Origin("m", None, "float32", "f" * 64, "e" * 64, ("only",), 2.0, 1, 3)
    entry = (
        '{"format": "xgblora-tape-2", "origin": {"model": "m", "revision": null, "dtype": "float32", "fingerprint": '
        f'"{"f" * 64}", "layout": "{"e" * 64}", "layers": ["only"], "alpha": 2.0, "rank": 1, "seed": 3}}, '
        '"directions": 2, "distribution": "gaussian", "weight_decay": 0.5, "rounding": "nearest", "rule": '
        '{"optimizer": "momentum", "beta1": 0.8, "beta2": 0.999, "epsilon": 1e-08}, "reinit": "warm", "colsample": 0.5}'
    ).encode()
    content = b"XGBLTAPE" + len(entry).to_bytes(4, "little") + entry
    content += zlib.crc32(content).to_bytes(4, "little")
    tape = load(tmp_path / "tape.bin", content)
    step = StepHeader(2, "gaussian", 0.5, "momentum", 0.8, 0.999, 1e-8)
    assert tape.header == TapeHeader(origin, step, RoundsHeader("nearest", "warm", 0.5))
    assert Tape(tape.header).to_bytes() == content


@pytest.mark.parametrize("change", [{"later": 1}, {"rule": {"optimizer": "sgd"}}, {"reinit": None}])
def test_a_header_with_other_entries_is_refused(tmp_path, change):
    entry = {"format": "xgblora-tape-2", **header().to_json(), **change}
    text = json.dumps({name: value for name, value in entry.items() if value is not None}).encode()
    content = b"XGBLTAPE" + len(text).to_bytes(4, "little") + text
    assert "not a readable tape" in refused(tmp_path / "tape.bin", content + zlib.crc32(content).to_bytes(4, "little"))


@pytest.mark.parametrize("directions", [1, 4])
def test_every_byte_that_is_changed_is_found(tmp_path, directions):
    tape, chance = small_tape(directions), random.Random(0)
    content, records = tape.to_bytes(), list(tape.records())
    first = boundaries(tape)[0]
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= chance.randrange(1, 256)
        refused(tmp_path / "tape.bin", bytes(flipped))
        try:
            found = list(load(tmp_path / "tape.bin", bytes(flipped), torn_end=True).records())
        except InputError:
            continue
        # a letter that was changed to that of a longer record reaches past the end: it looks torn
        assert position >= first
        assert found == records[: len(found)] != records


@pytest.mark.parametrize("directions", [1, 4])
def test_every_truncation_is_found_or_is_a_shorter_run_without_an_end(tmp_path, directions):
    tape = small_tape(directions)
    content, records, ends = tape.to_bytes(), list(tape.records()), boundaries(tape)
    for length in range(len(content)):
        whole = sum(end <= length for end in ends) - 1
        if length in ends:
            assert list(load(tmp_path / "tape.bin", content[:length]).records()) == records[:whole]
        else:
            refused(tmp_path / "tape.bin", content[:length])
        if whole < 0:
            refused(tmp_path / "tape.bin", content[:length], torn_end=True)
        else:
            torn = load(tmp_path / "tape.bin", content[:length], torn_end=True)
            assert list(torn.records()) == records[:whole]
            assert torn.to_bytes() == content[: ends[whole]]


def test_records_that_are_missing_moved_or_doubled_are_found(tmp_path):
    tape = Tape(header())
    for step in range(6):
        record_step(tape, step, grads=[float(step // 2)])
    tape.record_end(DIGEST)
    content, ends = tape.to_bytes(), boundaries(tape)
    start, parts = content[: ends[0]], [content[a:b] for a, b in pairwise(ends)]
    for i in range(len(parts)):
        for torn_end in (False, True):
            without = b"".join([start, *parts[:i], *parts[i + 1 :]])
            if i < len(parts) - 1:
                refused(tmp_path / "tape.bin", without, torn_end=torn_end)
            refused(tmp_path / "tape.bin", b"".join([start, *parts[: i + 1], *parts[i:]]), torn_end=torn_end)
            for j in range(i):
                moved = list(parts)
                moved[i], moved[j] = moved[j], moved[i]
                refused(tmp_path / "tape.bin", b"".join([start, *moved]), torn_end=torn_end)


def test_a_record_of_another_tape_does_not_fit(tmp_path):
    ours, theirs = small_tape(), Tape(header())
    record_step(theirs, 5)
    foreign = theirs.to_bytes()[boundaries(theirs)[0] :]
    assert "it is damaged" in refused(tmp_path / "tape.bin", ours.to_bytes() + foreign)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "does not begin like one"),
        (b"not a tape" * 9, "does not begin like one"),
        (b"XGBLTAPE", "not a readable tape"),
        (b"XGBLTAPE\x02\0\0\0{}", "format"),
        (b"XGBLTAPE\x01\0\0\x000", "not a readable tape"),
        (b"XGBLTAPE\x02\0\0\0[]", "not a readable tape"),
        (b'XGBLTAPE\x12\0\0\0{"format": "later"}', "not a readable tape"),
        (b'XGBLTAPE\x13\0\0\0{"format": "later"}', "its format is not xgblora-tape-2"),
        (b"XGBLTAPE\xff\xff\xff\xff{}", "not a readable tape"),
    ],
)
@pytest.mark.parametrize("torn_end", [False, True])
def test_other_files_are_refused(tmp_path, content, said, torn_end):
    assert said in refused(tmp_path / "tape.bin", content, torn_end=torn_end)


def test_a_missing_file_and_a_folder_are_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: cannot be read \(No such file or directory\)$"):
        Tape.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be read"):
        Tape.load(tmp_path)
