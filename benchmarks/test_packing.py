"""The zeroth-order step on real SST-2 batches of 16: packed, padded to the longest and to a multiple of 8, MeZO's.

OPT-125m's shape, in fp32 and bf16; MeZO's step in the same dtype.
"""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.functional import pad
from transformers import AutoTokenizer

import xgblora
from benchmarks.measure import compare
from benchmarks.models import on_device, random_model
from benchmarks.peers.mezo import MezoStep, full_logits_loss
from benchmarks.test_trunk import remembered
from xgblora.adapters import Depths
from xgblora.objectives.texts import CandidateObjective, classification
from xgblora.scoring import Collator, EncodedExample, encode
from xgblora.scoring.trunk_memory import states_by
from xgblora.tasks import load_task, sample_sets

SHARED = Path(__file__).parents[2] / "shared"
BATCHES, EXAMPLES, ROUNDS = 2, 16, 3


@pytest.fixture
def batches() -> list[list[EncodedExample]]:
    """The first batches of a training set of 1,000, as MeZO draws one."""
    tokenizer, data = SHARED / "models" / "opt-tokenizer", SHARED / "data" / "sst2"
    if not tokenizer.is_dir() or not data.is_dir():
        pytest.skip("../shared/data/sst2 or ../shared/models/opt-tokenizer is not here")
    sets = sample_sets(load_task("SST2", str(data)), num_train=1000, num_dev=0, num_eval=None, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    examples = [encode(sample, tokenizer, max_length=512) for sample in sets.train[: BATCHES * EXAMPLES]]
    return [examples[start : start + EXAMPLES] for start in range(0, len(examples), EXAMPLES)]


def as_padded(batch: dict) -> dict:
    return {name: value for name, value in batch.items() if name != "grid"}


def to_a_multiple_of_8(batch: dict) -> dict:
    """The padded form of a batch as MeZO's collator would pad it: the candidate's token counts too."""
    length = batch["input_ids"].shape[2]
    more = -(-(length + 1) // 8) * 8 - length
    padded = {name: pad(batch[name], (more, 0)) for name in ("input_ids", "attention_mask")}
    return {**as_padded(batch), **padded, "rows": batch["rows"] + more}


def mezo_batch(examples: list[EncodedExample], device: torch.device) -> dict:
    """One sequence a candidate, its token at the end, padded on the left to a multiple of 8."""
    texts = [(*example.sequences[0], token) for example in examples for ((_, token),) in example.options]
    length = -(-max(map(len, texts)) // 8) * 8
    ids = torch.tensor([[1] * (length - len(text)) + list(text) for text in texts], device=device)
    mask = torch.tensor([[0] * (length - len(text)) + [1] * len(text) for text in texts], device=device)
    label = torch.tensor([example.label for example in examples], device=device)
    return {"input_ids": ids, "attention_mask": mask, "label": label}


@pytest.mark.published
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_packed_step_against_padded_and_mezo(benchmark, device, batches, name):
    dtype = getattr(torch, name)
    model = random_model("opt-125m", device, dtype)
    objective = CandidateObjective(model, classification)
    exact = [on_device(Collator(pad_token_id=1)(batch), device) for batch in batches]
    coarse = Collator(pad_token_id=1, few_shapes=True)
    # as training makes them
    ours = [on_device(coarse(batch), device) for batch in batches] if device.type == "cuda" else exact
    theirs = [mezo_batch(batch, device) for batch in batches]
    for one, same, other in zip(ours, exact, theirs, strict=True):
        with torch.no_grad():
            packed, padded, mezo = (
                objective(model, one),
                objective(model, as_padded(same)),
                full_logits_loss(model, other),
            )
        torch.testing.assert_close(packed, padded, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-5)
        torch.testing.assert_close(packed.mean(), mezo, rtol=2e-2, atol=2e-2)
    adapters = xgblora.attach(model, alpha=16.0, seed=0)
    zo = xgblora.ZeroOrder(adapters, objective, eps=1e-3, lr=1e-6)
    parameters = [tensor for layer in adapters.layers.values() for tensor in (layer.a, layer.b)]
    mezo_step = MezoStep(parameters, lambda b: full_logits_loss(model, b), eps=1e-3, lr=1e-6)

    def steps(batches):
        for batch in batches:
            zo.step(batch)

    def mezo():
        adapters.arena.read_master()
        for batch in theirs:
            mezo_step(batch, seed=0)
        adapters.arena.restore()
        adapters.arena.read_live(0, 1)

    padded_batches = [as_padded(batch) for batch in exact]
    multiples = [to_a_multiple_of_8(batch) for batch in exact]
    ways = {
        "packed": lambda: steps(ours),
        "padded": lambda: steps(padded_batches),
        "padded_to_8": lambda: steps(multiples),
        "mezo": mezo,
    }
    real = sum(int(batch["attention_mask"].sum()) for batch in ours)
    for name, computed in {
        "packed": sum(rows * length for rows, length in (batch["grid"] for batch in ours)),
        "padded": sum(batch["input_ids"].numel() for batch in exact),
        "padded_to_8": sum(batch["input_ids"].numel() for batch in multiples),
        "mezo": sum(batch["input_ids"].numel() for batch in theirs),
    }.items():
        benchmark.extra_info[f"tokens_over_real_{name}"] = computed / real
    compare(benchmark, "packed", ways, rounds=ROUNDS, device=device)


@pytest.mark.published
@pytest.mark.parametrize("shape", ["opt-125m", "opt-350m"])
def test_the_upper_half_remembered_against_mezo(benchmark, device, tmp_path, batches, shape):
    """With the share of the filling that falls to these steps in runs of 300 and 2,000 steps on 1,000 examples."""
    model = random_model(shape, device, torch.float32)
    objective = CandidateObjective(model, classification)
    adapters = xgblora.attach(model, alpha=16.0, seed=0, depths=Depths(0.5, 1.0))
    zo = xgblora.ZeroOrder(adapters, objective, eps=1e-3, lr=1e-6)
    first = adapters.first_block()
    compute = states_by(objective.scorer, model, first, Collator(pad_token_id=1))
    ours = [on_device(Collator(pad_token_id=1)(batch), device) for batch in batches]
    states_of = [remembered(objective, model, first, batch, tmp_path) for batch in batches]
    examples = [example for batch in batches for example in batch]
    # each of the 1,000 is asked for 4.8 and 32 times
    filled = {steps: examples[: round(len(examples) * 1000 / (steps * EXAMPLES))] for steps in (300, 2000)}
    theirs = [mezo_batch(batch, device) for batch in batches]
    parameters = [tensor for layer in adapters.layers.values() for tensor in (layer.a, layer.b)]
    mezo_step = MezoStep(parameters, lambda batch: full_logits_loss(model, batch), eps=1e-3, lr=1e-6)

    def steps(of_run: int) -> None:
        compute(filled[of_run])
        for batch, states in zip(ours, states_of, strict=True):
            zo.step({**batch, **states(batch)})

    def mezo() -> None:
        adapters.arena.read_master()
        for batch in theirs:
            mezo_step(batch, seed=0)
        adapters.arena.restore()
        adapters.arena.read_live(0, 1)

    ways = {"remembered": partial(steps, 300), "remembered_in_2000_steps": partial(steps, 2000), "mezo": mezo}
    compare(benchmark, "remembered", ways, rounds=ROUNDS, device=device)
