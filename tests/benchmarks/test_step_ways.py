"""The ways of a step: which there are, that their texts are the same, and that other losses are refused."""

import pytest
import torch

from benchmarks import models, step_ways

CPU, LENGTH = torch.device("cpu"), 12


@pytest.fixture
def tiny(monkeypatch) -> str:
    """The name of a shape of two layers."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    monkeypatch.setitem(models.SHAPES, "tiny", shape)
    return "tiny"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_ways_run_twice(tiny, dtype):
    ways = step_ways.step_ways(tiny, CPU, dtype, LENGTH)
    assert list(ways) == ["step", "floor", "mezo", "mezo_same_rows", "lozo", "grzo", "full"]
    for way in (*ways.values(), *ways.values()):
        way()


def test_the_texts_of_the_forms_are_the_same_examples(tiny):
    model = models.random_model(tiny, CPU, torch.float32)
    batch = models.random_batch(model, LENGTH)
    example, candidate = step_ways.one_text_an_example(batch), step_ways.one_text_a_candidate(batch)
    assert example["input_ids"].shape == (models.EXAMPLES, LENGTH - 1)
    assert candidate["input_ids"].shape == (2 * models.EXAMPLES, LENGTH)
    assert torch.equal(candidate["input_ids"][::2, :-1], example["input_ids"])
    assert torch.equal(candidate["input_ids"][:, -1].view(-1, 2), example["options"])


@pytest.mark.parametrize(("form", "name"), [("same_rows_losses", "same rows"), ("full_logits_loss", "mezo")])
def test_other_losses_are_refused(tiny, monkeypatch, form, name):
    theirs = getattr(step_ways, form)
    monkeypatch.setattr(step_ways, form, lambda model, batch: theirs(model, batch) + 0.001)
    with pytest.raises(AssertionError, match=f"{name}: loss"):
        step_ways.step_ways(tiny, CPU, torch.float32, LENGTH)
