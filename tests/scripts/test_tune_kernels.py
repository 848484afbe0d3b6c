"""The search for the fastest plan and the table that it writes, with timings that are given: no GPU is asked."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.fixtures.files import imported
from xgblora.errors import InputError
from xgblora.kernels.tuning import FEW_ROWS, FUSED_GEMM, VENDOR_GEMM, Key, Plan, default_plan, read_entries, row_bucket

SCRIPT = Path(__file__).parents[2] / "scripts" / "tune_kernels.py"
ABOUT = {"architecture": "sm_90", "gpu": "NVIDIA H100", "versions": {"torch": "2.13.0"}}
FUSED = Plan(FUSED_GEMM, 128, 128, 64, num_warps=8)
H100_SHARED_MEMORY = 227 * 1024


@pytest.fixture(scope="module")
def script():
    with imported(SCRIPT) as module:
        yield module


@pytest.fixture
def shape(script):
    return script.Shape(torch.bfloat16, 1024, 4096, 2048)


def found(script, plan=FUSED, seconds=8e-6, default=10e-6, vendor=10e-6):
    return script.Found(plan, seconds, default, vendor)


def entries(text, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(text)
    return read_entries(path)


def test_without_a_gpu_it_refuses_in_one_line():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no CUDA device: tuning is for a machine with a GPU\n"


def test_shapes_come_once_and_row_counts_are_powers_of_two(script):
    shapes = script.shapes_of(["opt-6.7b", "llama-2-7b", "llama-3-8b"], ["attention"], [1, 64], ["bfloat16"])
    assert [(s.rows, s.outputs, s.inputs) for s in shapes] == [
        *((1, 4096, 4096), (64, 4096, 4096)),
        *((1, 1024, 4096), (64, 1024, 4096)),
    ]
    both = script.shapes_of(["opt-125m"], ["attention", "feed_forward"], [1], ["float16", "float32"])
    assert [(s.outputs, s.inputs) for s in both] == [(768, 768), (3072, 768), (768, 3072)] * 2
    with pytest.raises(InputError, match="--rows 1000: must be powers of two"):
        script.shapes_of(["opt-125m"], ["attention"], [1, 1000], ["bfloat16"])


@pytest.mark.parametrize("rows", [1, 2, 16, 64, 128, 4096])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_candidates_hold_the_default_and_the_vendor_and_can_all_stand_in_the_table(script, rows, dtype, tmp_path):
    shape = script.Shape(dtype, rows, 4096, 4096)
    plans = script.candidates(shape, H100_SHARED_MEMORY)
    assert plans[0] == default_plan(rows)
    assert Plan(VENDOR_GEMM) in plans
    assert len(set(plans)) == len(plans) > 5
    assert all(script.tile_bytes(plan, dtype.itemsize) <= H100_SHARED_MEMORY for plan in plans)
    assert {plan.path for plan in plans} >= ({FEW_ROWS} if rows <= 16 else {FUSED_GEMM})
    for plan in plans:
        text = script.table_text([], {shape: found(script, plan)}, 0.03, ABOUT)
        ((key, read, _),) = entries(text, tmp_path)
        assert (read, key.row_bucket) == (plan, row_bucket(rows))


def test_a_plan_that_was_lucky_once_does_not_win(script):
    default = Plan(VENDOR_GEMM)
    plans = [default, FUSED, *(Plan(FUSED_GEMM, 64, 64, 32, num_stages=stages) for stages in range(2, 8))]
    asked = []

    def measure(given, rounds):
        asked.append((list(given), rounds))
        seconds = {plan: 20.0 + index for index, plan in enumerate(given)}
        seconds[default] = 10.0
        seconds[FUSED] = 9.0
        if len(asked) == 1:
            seconds[plans[4]] = 1.0
        return {plan: seconds[plan] for plan in given}

    result = script.search(plans, default, measure)
    assert (result.plan, result.seconds, result.default_seconds, result.vendor_seconds) == (FUSED, 9.0, 10.0, 10.0)
    (first, rounds), (last, final_rounds) = asked
    assert first == plans
    assert set(last) == {default, FUSED, plans[4]}
    assert final_rounds > rounds


def test_the_default_and_the_vendor_are_measured_to_the_end_however_slow(script):
    default, plans = Plan(FEW_ROWS, 16, 16, 128), [Plan(FEW_ROWS, 16, 32, size) for size in (64, 128, 256, 512)]

    def measure(given, rounds):
        return {plan: 1.0 if plan in plans else 5.0 for plan in given}

    result = script.search([default, Plan(VENDOR_GEMM), *plans], default, measure)
    assert (result.default_seconds, result.vendor_seconds) == (5.0, 5.0)
    assert result.plan in plans


def test_medians_are_taken_by_turns(script):
    turns, given = [], {FUSED: iter([5.0, 1.0, 2.0]), Plan(VENDOR_GEMM): iter([3.0, 9.0, 4.0])}
    ways = {plan: lambda plan=plan: turns.append(plan) or next(given[plan]) for plan in given}
    assert script.medians_by_turns(ways, 3) == {FUSED: 2.0, Plan(VENDOR_GEMM): 4.0}
    assert turns == [*given] * 3


@pytest.mark.parametrize(("seconds", "kept"), [(9.69e-6, True), (9.71e-6, False), (10e-6, False), (12e-6, False)])
def test_an_entry_is_kept_only_past_the_margin(script, shape, seconds, kept, tmp_path):
    text = script.table_text([], {shape: found(script, seconds=seconds)}, 0.03, ABOUT)
    assert len(entries(text, tmp_path)) == kept


def test_an_entry_says_where_it_was_measured_and_how_fast_all_were(script, shape, tmp_path):
    text = script.table_text([], {shape: found(script, vendor=11.234e-6)}, 0.03, ABOUT)
    ((key, plan, rest),) = entries(text, tmp_path)
    assert key == Key("rank1_linear", "sm_90", "bfloat16", 1024, 4096, 2048)
    assert plan == FUSED
    assert rest == {
        "gpu": "NVIDIA H100",
        "versions": {"torch": "2.13.0"},
        "microseconds": {"plan": 8.0, "default": 10.0, "vendor_gemm": 11.23},
    }


def test_other_architectures_and_shapes_stay_and_what_is_measured_again_is_replaced_or_goes(script, shape, tmp_path):
    other_plan = Plan(FUSED_GEMM, 64, 64, 32)
    key = Key("rank1_linear", "sm_90", "bfloat16", 1024, 4096, 2048)
    others = [
        Key(**{**asdict(key), **change})
        for change in ({"architecture": "sm_80"}, {"row_bucket": 512}, {"dtype": "float16"}, {"inputs": 4096})
    ]
    old = [(one, other_plan, {"gpu": "before"}) for one in (key, *others)]
    replaced = entries(script.table_text(old, {shape: found(script)}, 0.03, ABOUT), tmp_path)
    assert {one: plan for one, plan, _ in replaced} == {key: FUSED, **dict.fromkeys(others, other_plan)}
    assert [rest["gpu"] for _, _, rest in replaced].count("before") == 4
    gone = entries(script.table_text(old, {shape: found(script, seconds=10e-6)}, 0.03, ABOUT), tmp_path)
    assert {one for one, _, _ in gone} == set(others)
    assert entries(script.table_text(replaced, {}, 0.03, ABOUT), tmp_path) == replaced


def test_the_empty_table_is_the_one_of_the_repository(script):
    assert json.loads(script.table_text([], {}, 0.03, ABOUT)) == {"entries": []}


def test_accuracy_is_judged_against_fp64(script):
    exact = torch.randn(64, dtype=torch.float64)
    eager = exact.bfloat16()
    assert script.is_accurate(eager, eager, exact)
    wrong = eager.clone()
    wrong[3] += 1
    assert not script.is_accurate(wrong, eager, exact)
    wrong[3] = float("nan")
    assert not script.is_accurate(wrong, eager, exact)


@pytest.fixture
def on_a_gpu(script, monkeypatch):
    """As if there were one: each shape is "measured" by the next of the given results, or fails with it."""
    results = []

    def tune(shape, most=0):
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(script, "circumstances", lambda: ABOUT)
    monkeypatch.setattr(script, "tune", tune)
    return results


def test_the_table_is_written_after_every_shape(script, on_a_gpu, tmp_path, capsys):
    path = tmp_path / "table.json"
    on_a_gpu += [found(script), InputError("no such luck")]
    given = ["--models", "opt-125m", "--rows", "256", "1024", f"--output={path}"]
    with pytest.raises(SystemExit, match=r"^error: no such luck$"):
        script.main(given)
    ((key, plan, _),) = read_entries(path)
    assert (key.row_bucket, plan) == (256, FUSED)
    on_a_gpu += [found(script, seconds=10e-6), found(script)]
    script.main(given)
    ((key, _, _),) = read_entries(path)
    assert key.row_bucket == 1024
    assert capsys.readouterr().out == f"1 entries: {path}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


def test_it_stops_in_time_and_what_was_measured_is_written(script, on_a_gpu, tmp_path, capsys, monkeypatch):
    path, clock = tmp_path / "table.json", iter(range(0, 1000, 20))
    monkeypatch.setattr(script.time, "monotonic", lambda: next(clock))
    on_a_gpu += [found(script), found(script)]
    rows = ["--models", "opt-125m", "--rows", "256", "512", "1024", "2048"]
    # a shape takes 20 s and there is one minute: the third would not be finished
    script.main([*rows, "--minutes", "1.5", f"--output={path}"])
    assert capsys.readouterr().out.splitlines()[0] == "the time is up: 2 of 4 shapes were not measured"
    assert [key.row_bucket for key, _, _ in read_entries(path)] == [256, 512]
    with pytest.raises(SystemExit, match=r"^error: --candidates=?-1"):
        script.main([*rows, "--candidates", "-1", f"--output={path}"])


def test_few_candidates_are_the_likeliest_and_hold_the_default_and_the_vendor(script):
    shape = script.Shape(torch.bfloat16, 2048, 4096, 4096)
    first = script.candidates(shape, H100_SHARED_MEMORY)[:4]
    assert first[0] == Plan(VENDOR_GEMM)
    assert all(plan.path == FUSED_GEMM and plan.block_m == 128 and plan.block_k == 64 for plan in first[1:])


def test_a_damaged_table_is_not_written_over(script, on_a_gpu, tmp_path):
    path = tmp_path / "table.json"
    path.write_text("{")
    on_a_gpu += [found(script)]
    with pytest.raises(SystemExit, match=r"^error: .*table.json: no table of measured plans \(JSONDecodeError"):
        script.main(["--models", "opt-125m", "--rows", "256", f"--output={path}"])
    assert path.read_text() == "{"
