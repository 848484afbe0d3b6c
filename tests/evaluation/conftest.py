"""Samples, models, and the plain way to score: one candidate at a time."""

import pytest
import torch

from xgblora.tasks import Sample


def one_candidate_at_a_time(model, tokenizer, samples) -> list[list[float]]:
    """The mean log-probability of each candidate's option tokens, by a forward of its own, without padding or cache."""
    scores = []
    for sample in samples:
        scores.append([])
        for text in sample.candidates:
            encoding = tokenizer(text, return_offsets_mapping=True)
            ids = torch.tensor([encoding["input_ids"]])
            start = next(i for i, (_, end) in enumerate(encoding["offset_mapping"]) if end > len(sample.prompt))
            count = ids.shape[1] - start
            with torch.no_grad():
                logits = model(ids[:, :-1], use_cache=False, logits_to_keep=count).logits[0]
            chosen = logits.log_softmax(dim=-1)[torch.arange(count), ids[0, start:]]
            scores[-1].append(chosen.mean().item())
    return scores


@pytest.fixture(scope="session")
def plain_scores():
    """`one_candidate_at_a_time`."""
    return one_candidate_at_a_time


@pytest.fixture
def samples() -> list[Sample]:
    """Candidates of one token and of several, two to four of them, long and short prompts."""
    choices = [
        ("a gem It was", ("terrible", "great"), 1),
        ("the cast It", ("is superb", "was terrible and slow"), 1),
        ("bland , slow and much too long It was", ("great", "a great delight", "a", "slow and much too long"), 3),
        ("x", ("y", "z z z z z z"), 0),
    ]
    return [
        Sample.of_choices(
            prompt,
            [f"{prompt} {answer}" for answer in answers],
            right,
            f"sample {number}",
            sfc_prompt="It was",
            sfc_candidates=[f"It was {answer}" for answer in answers],
        )
        for number, (prompt, answers, right) in enumerate(choices)
    ]


@pytest.fixture
def model(make_model, tiny_tokenizer):
    """A tiny OPT, Llama or GPT-2 with the vocabulary of `tiny_tokenizer`."""
    return make_model(vocab_size=len(tiny_tokenizer))


@pytest.fixture
def opt(make_opt, tiny_tokenizer):
    """A tiny OPT with the vocabulary of `tiny_tokenizer`."""
    return make_opt(vocab_size=len(tiny_tokenizer))


@pytest.fixture
def load_shared(shared_model):
    """A function `(name)` that loads a shared model and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load(name: str):
        folder = shared_model(name)
        return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    return load
