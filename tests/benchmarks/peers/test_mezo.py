"""MeZO's step and its two forwards."""

import copy

import pytest
import torch

from benchmarks.peers.mezo import MezoStep, full_logits_loss, same_rows_losses


def test_the_loss_of_one_text_a_candidate_is_that_of_one_text_an_example(make_opt, texts, losses_of):
    model, count = make_opt(), texts["options"].shape[1]
    ids = texts["input_ids"].repeat_interleave(count, dim=0)
    ids = torch.cat((ids, texts["options"].reshape(-1, 1)), dim=1)
    own = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "label": texts["label"]}
    with torch.no_grad():
        losses = same_rows_losses(model, texts)
        torch.testing.assert_close(losses, losses_of(model, texts))
        torch.testing.assert_close(full_logits_loss(model, own), losses.mean())


def test_the_update_is_the_projected_gradient_times_the_noise(make_opt, texts, losses_of):
    eps, lr, seed = 1e-3, 0.1, 7
    model = make_opt(dtype=torch.float64)
    plus, minus, expected = (copy.deepcopy(model) for _ in range(3))
    torch.manual_seed(seed)
    noise = [torch.normal(0.0, 1.0, parameter.shape, dtype=torch.float64) for parameter in model.parameters()]
    step = MezoStep(list(model.parameters()), lambda batch: losses_of(model, batch).mean(), eps=eps, lr=lr)
    projected = step(texts, seed)
    with torch.no_grad():
        for moved, size in ((plus, eps), (minus, -eps), (expected, -lr * projected)):
            for parameter, z in zip(moved.parameters(), noise, strict=True):
                parameter.add_(size * z)
        difference = (losses_of(plus, texts).mean() - losses_of(minus, texts).mean()).item()
    assert projected == pytest.approx(difference / (2 * eps), rel=1e-8)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-12)
