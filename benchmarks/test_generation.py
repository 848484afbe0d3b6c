"""Answers to questions of SQuAD: beginnings shared and rows that leave, against padded batches run to their end."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.measure import compare
from benchmarks.peers.generation import batches_to_their_end
from xgblora.scoring import generate_answers
from xgblora.tasks import load_task

SHARED = Path(__file__).parents[2] / "shared"
ROUNDS, MAX_LENGTH, MOST = 3, 512, 50


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.published)])
def test_answers_against_padded_batches(benchmark, device, dtype, count):
    model_folder, data_folder = SHARED / "models" / "opt-mini", SHARED / "data" / "squad"
    if not (model_folder / "config.json").exists() or not data_folder.is_dir():
        pytest.skip("../shared is not here")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    prompts = [sample.prompt for sample in load_task("SQuAD", str(data_folder)).valid[:count]]
    ways = {
        "together": lambda: generate_answers(model, tokenizer, prompts, max_length=MAX_LENGTH, max_new_tokens=MOST),
        "padded": lambda: batches_to_their_end(model, tokenizer, prompts, max_length=MAX_LENGTH, most=MOST),
    }
    agreeing = sum(one == other for one, other in zip(ways["together"](), ways["padded"](), strict=True))
    # in 16 bits two tokens may be as likely, and which is first is up to rounding
    assert agreeing >= count * (1.0 if model.dtype.itemsize == 4 else 0.8)
    compare(benchmark, "together", ways, rounds=ROUNDS, device=device)
