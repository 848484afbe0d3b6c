"""How sizes, dtypes and errors are spelled."""

import pytest
import torch

from xgblora.spelling import dtype_name, file_size, memory_size, number_of, one_line


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (5 << 19, "2.5 MiB"), (3 << 40, "3072.0 GiB")],
)
def test_memory_is_in_the_largest_binary_unit(size, said):
    assert memory_size(size) == said


def test_memory_is_in_the_unit_that_is_asked_for():
    assert memory_size(1 << 20, "GiB", digits=3) == "0.001 GiB"
    assert memory_size(0, "MiB") == "0.0 MiB"


@pytest.mark.parametrize(
    ("size", "said"), [(999, "999 bytes"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (10**16, "10000.0 TB")]
)
def test_files_are_in_decimal_units(size, said):
    assert file_size(size) == said


def test_a_dtype_is_its_name_alone():
    assert [dtype_name(dtype) for dtype in (torch.bfloat16, torch.int8)] == ["bfloat16", "int8"]


def test_an_error_is_one_line():
    error = ValueError("two\n  lines")
    assert one_line(error) == "two lines"
    assert one_line(error, kind=True, limit=5) == "ValueError: two l"
    assert one_line(KeyError()) == "KeyError"


def test_a_number_of_things():
    assert [number_of(count, "merge") for count in (0, 1, 2)] == ["0 merges", "1 merge", "2 merges"]
