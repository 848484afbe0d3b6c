"""The choice of a path: a function of the shape and of a table in the repository, the same on every machine."""

import json
from dataclasses import asdict

import pytest
import torch

from xgblora.errors import InputError
from xgblora.kernels import tuning
from xgblora.kernels.tuning import FEW_ROWS, FUSED_GEMM, VENDOR_GEMM, Key, Plan, default_plan, plan_for, row_bucket

CPU = torch.device("cpu")
KEY = Key("rank1_linear", "cpu", "bfloat16", 4096, 768, 512)
PLAN = Plan(FUSED_GEMM, 128, 128, 64, num_warps=8)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A function that makes the given text, or the entries, the table of this test."""
    path = tmp_path / "tuning_table.json"
    monkeypatch.setattr(tuning, "TABLE_FILE", path)

    def write(content):
        path.write_text(content if isinstance(content, str) else json.dumps({"entries": content}))
        tuning.table.cache_clear()
        plan_for.cache_clear()
        return path

    yield write
    monkeypatch.undo()
    tuning.table.cache_clear()
    plan_for.cache_clear()


def entry(key=KEY, plan=PLAN, **changes):
    return {
        **asdict(key),
        "plan": plan if isinstance(plan, dict) else asdict(plan),
        "gpu": "a GPU",
        "microseconds": {"plan": 1.0},
        **changes,
    }


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128), (1000, 1024)])
def test_row_buckets(rows, bucket):
    assert row_bucket(rows) == bucket


@pytest.mark.parametrize(("rows", "path"), [(1, FEW_ROWS), (2, FEW_ROWS), (16, FEW_ROWS), (17, VENDOR_GEMM)])
def test_default_paths(rows, path):
    assert default_plan(rows).path == path


def test_the_table_of_the_repository_can_be_read():
    tuning.read_entries(tuning.TABLE_FILE)


def test_where_nothing_was_measured_many_rows_take_the_vendor_gemm(table):
    table([])
    assert plan_for("rank1_linear", CPU, torch.bfloat16, 4096, 4096, 4096).path == VENDOR_GEMM


def test_the_table_wins_for_what_was_measured_and_for_nothing_else(table):
    table([entry()])
    assert plan_for("rank1_linear", CPU, torch.bfloat16, 3000, 768, 512) == PLAN
    for dtype, rows, outputs in ((torch.float16, 3000, 768), (torch.bfloat16, 2000, 768), (torch.bfloat16, 3000, 512)):
        assert plan_for("rank1_linear", CPU, dtype, rows, outputs, 512).path == VENDOR_GEMM
    assert plan_for("rank1_linear", torch.device("meta"), torch.bfloat16, 3000, 768, 512).path == VENDOR_GEMM


def changed(**changes):
    return entry(plan=Plan(**{**asdict(PLAN), **changes}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "JSONDecodeError"),
        ('{"entries": [', "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'entries'"),
        ([{"operation": "rank1_linear"}], "KeyError: 'architecture'"),
        ([entry(row_bucket="4096")], "row_bucket='4096' is no int"),
        ([entry(row_bucket=3000)], "row_bucket=3000 is no power of two"),
        ([entry(plan={**asdict(PLAN), "blocks": 3})], "a plan has no blocks"),
        ([changed(path="fast")], "path='fast' is none"),
        ([changed(block_n=96)], "block_n=96 is no power of two"),
        ([changed(block_m=8)], "block_m=8 is no power of two from 16 on"),
        ([changed(num_stages=0)], "num_stages=0"),
        ([changed(path=FEW_ROWS, block_m=1)], "block_m=1 is for a single row, not 4096"),
        ([entry(), entry(plan=Plan(VENDOR_GEMM))], "two plans for Key"),
    ],
)
def test_a_damaged_table_is_one_clear_line_and_no_other_plan(table, content, reason):
    path = table(content)
    with pytest.raises(InputError) as raised:
        plan_for("rank1_linear", CPU, torch.bfloat16, 3000, 768, 512)
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: no table of measured plans (")
    assert reason in line


def test_a_missing_table_is_one_clear_line(table):
    table([]).unlink()
    with pytest.raises(InputError, match="no table of measured plans"):
        tuning.read_entries(tuning.TABLE_FILE)
