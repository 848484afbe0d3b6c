"""Evaluation in batches against one candidate at a time, on the held-out sets of SST-2 (872) and Copa (100)."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.measure import compare
from benchmarks.peers import one_candidate_at_a_time
from xgblora.evaluation import evaluate
from xgblora.tasks import TASKS, load_task

SHARED = Path(__file__).parents[2] / "shared"
ROUNDS = 2


@pytest.mark.parametrize("task", ["SST2", "Copa"])
def test_evaluation_against_one_candidate_at_a_time(benchmark, device, dtype, task):
    model_folder, data_folder = SHARED / "models" / "opt-mini", SHARED / "data" / task.lower()
    if not (model_folder / "config.json").exists() or not data_folder.is_dir():
        pytest.skip("../shared is not here")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    samples = load_task(task, str(data_folder)).valid[:]
    ways = {
        "evaluate": lambda: evaluate(model, tokenizer, TASKS[task], samples, max_length=512),
        "one_at_a_time": lambda: one_candidate_at_a_time(model, tokenizer, samples),
    }
    chosen = [record.prediction for record in ways["evaluate"]().records]
    agreeing = sum(ours == theirs for ours, theirs in zip(chosen, ways["one_at_a_time"](), strict=True))
    # in bf16 a few scores round to the same number
    assert agreeing >= len(samples) * (1.0 if device.type == "cpu" else 0.95)
    compare(benchmark, "evaluate", ways, rounds=ROUNDS, device=device)
