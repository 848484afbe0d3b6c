"""Evaluation in batches against one candidate at a time: SST-2's held-out set, a part of it, others, and in context."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.measure import compare
from benchmarks.peers.evaluation import one_candidate_at_a_time
from xgblora.evaluation import evaluate
from xgblora.evaluation.demonstrations import in_context
from xgblora.tasks import TASKS, load_task

SHARED = Path(__file__).parents[2] / "shared"
ROUNDS = 3
# the most tokens of a text, for opt-mini
MAX_LENGTH = 512
CASES = [
    pytest.param("SST2", 872, 0, id="SST2", marks=pytest.mark.published),
    pytest.param("SST2", 200, 0, id="SST2-200"),
    pytest.param("Copa", 100, 0, id="Copa"),
    # two passages, with 20 and 16 answers to questions about them
    pytest.param("MultiRC", 36, 0, id="MultiRC-36"),
    pytest.param("SST2", 50, 8, id="SST2-50-in-context"),
]


@pytest.mark.parametrize(("task", "count", "shown"), CASES)
def test_evaluation_against_one_candidate_at_a_time(benchmark, device, dtype, task, count, shown):
    model_folder, data_folder = SHARED / "models" / "opt-mini", SHARED / "data" / task.lower()
    if not (model_folder / "config.json").exists() or not data_folder.is_dir():
        pytest.skip("../shared is not here")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    splits = load_task(task, str(data_folder))
    samples, demonstrations = splits.valid[:count], splits.train[:shown]
    asked = [in_context(sample, demonstrations, TASKS[task].separator) for sample in samples]
    settings = {"max_length": MAX_LENGTH, "demonstrations": demonstrations}
    ways = {
        "evaluate": lambda: evaluate(model, tokenizer, TASKS[task], samples, **settings),
        "one_at_a_time": lambda: one_candidate_at_a_time(model, tokenizer, asked),
    }
    chosen = [record.prediction for record in ways["evaluate"]().records]
    agreeing = sum(ours == theirs for ours, theirs in zip(chosen, ways["one_at_a_time"](), strict=True))
    # in bf16 a few scores round to the same number
    assert agreeing >= len(samples) * (1.0 if device.type == "cpu" else 0.95)
    compare(benchmark, "evaluate", ways, rounds=ROUNDS, device=device)
