"""Completions of 64 members in one batch: against one member after the other, and against the model unperturbed.

stories260K, 4 prompts a member, so 256 rows; texts that do not end, so that all ways write the same number of tokens.
"""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import xgblora
from benchmarks.measure import compare
from xgblora.completions import Sampling, generate_for_members
from xgblora.completions import members as of_members

FOLDER = Path(__file__).parents[2] / "shared" / "models" / "stories260K"
# three rounds of a fifth of a second scattered by a tenth
MEMBERS, ROUNDS = 64, 9
# one by one takes half a minute for all of them
EIGHTH = MEMBERS // 8
PROMPTS = ("Once upon a time", "Lily and Tom", "The big dog", "One day, a bird")
SAMPLING = Sampling(temperature=1.0, max_new_tokens=16)
TARGETS = ("q_proj", "v_proj")


def test_members_in_one_batch_against_one_by_one_and_unperturbed(benchmark, device, dtype, monkeypatch):
    if not (FOLDER / "config.json").exists():
        pytest.skip("../shared/models/stories260K is not here")
    monkeypatch.setattr(of_members, "end_ids", lambda tokenizer, model: frozenset())
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    plain, model = (AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype).to(device).eval() for _ in range(2))
    adapters = xgblora.attach(model, TARGETS, alpha=1.0, seed=0)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(MEMBERS, adapters.arena.master.numel(), generator=generator).to(device) * 0.05
    live = adapters.arena.allocate_live(MEMBERS, torch.float32)

    def together():
        live.copy_(noise)
        return generate_for_members(model, tokenizer, adapters, PROMPTS, members=MEMBERS, sampling=SAMPLING)

    def eighth_one_by_one():
        results = []
        for of_member in noise[:EIGHTH]:
            live[0] = of_member
            results += generate_for_members(model, tokenizer, adapters, PROMPTS, members=1, sampling=SAMPLING)
        return results

    def unperturbed():
        return generate_for_members(plain, tokenizer, None, PROMPTS * MEMBERS, sampling=SAMPLING)

    texts = [[completion.ids for (completion,) in of_member] for of_member in together()]
    alone = [[completion.ids for (completion,) in of_member] for of_member in eighth_one_by_one()]
    agreeing = sum(
        one == other for one, other in zip(itertools.chain(*texts[:EIGHTH]), itertools.chain(*alone), strict=True)
    )
    # a token may tip where logits are rounded otherwise
    assert agreeing >= 0.9 * EIGHTH * len(PROMPTS)
    written = sum(map(len, itertools.chain(*texts)))
    assert written == MEMBERS * len(PROMPTS) * SAMPLING.max_new_tokens
    benchmark.extra_info["tokens"] = written
    ways = {"members": together, "eighth_one_by_one": eighth_one_by_one, "unperturbed": unperturbed}
    compare(benchmark, "members", ways, rounds=ROUNDS, device=device)
