"""The choice of a path: a function of the shape alone, the same on every machine."""

import pytest

from xgblora.kernels.tuning import FEW_ROWS, TABLE, VENDOR_GEMM, Plan, default_plan, plan_for, row_bucket


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128), (1000, 1024)])
def test_row_buckets(rows, bucket):
    assert row_bucket(rows) == bucket


@pytest.mark.parametrize(("rows", "path"), [(1, FEW_ROWS), (2, FEW_ROWS), (16, FEW_ROWS), (17, VENDOR_GEMM)])
def test_default_paths(rows, path):
    assert default_plan(rows).path == path


def test_many_rows_take_the_vendor_gemm_where_nothing_was_measured():
    assert plan_for("rank1_linear", "sm_90", 4096, 4096, 4096).path == VENDOR_GEMM


def test_the_table_wins(monkeypatch):
    measured = Plan("fused_gemm", 128, 128, 64, num_warps=8)
    monkeypatch.setitem(TABLE, ("rank1_linear", "sm_90", 4096, 768, 512), measured)
    assert plan_for("rank1_linear", "sm_90", 3000, 768, 512) == measured
    assert plan_for("rank1_linear", "sm_80", 3000, 768, 512).path == VENDOR_GEMM
