"""`data`: noise-weighted sums of inputs, against the same computed by hand."""

import pytest
import torch

import xgblora
from tests.boosting.starts.reader import SAMPLES, Reader, texts
from xgblora.boosting.starts.data import data
from xgblora.boosting.starts.forwards import EXAMPLES
from xgblora.ops.noise import derive_seed, normal

LAYERS = ["left", "right", "up"]


def measured(rank=1, round=0, dtype=torch.float32):
    adapters = xgblora.attach(Reader(dtype), LAYERS, alpha=2.0, rank=rank, seed=3)
    with torch.no_grad():
        return adapters, data(adapters, SAMPLES, round)


@pytest.mark.parametrize("rank", [1, 2])
@torch.no_grad()
def test_it_is_the_noise_weighted_sum_of_the_inputs_of_all_words(rank):
    adapters, start = measured(rank, round=2)
    model, sums, inputs = Reader(torch.float64), [torch.zeros(rank, k) for k in (6, 10)], ([], [])
    for number, batch in enumerate(texts()(2, EXAMPLES)):
        x = model.words(batch["input_ids"][batch["attention_mask"].bool()])
        for which, read in enumerate((x, torch.tanh(torch.cat((model.left(x), model.right(x)), dim=1)))):
            noise = normal(derive_seed(3, 2, number, which), rank * len(x), device=x.device).view(rank, -1)
            sums[which] = sums[which] + noise.double() @ read
            inputs[which].append(read)
    for slot in adapters.arena.slots:
        which = int(slot.name == "up")
        a, b = (part[0].double() for part in slot.views(start.unsqueeze(0)))
        x, expected = torch.cat(inputs[which]), sums[which]
        wanted = x.square().sum(dim=1).mean() / (3 * slot.in_features)
        expected = expected * (wanted / (x @ expected.T).square().mean(dim=0)).sqrt().unsqueeze(1)
        assert torch.allclose(a, expected, rtol=2**-7, atol=2e-4)
        assert torch.equal(a, a.to(torch.bfloat16).double())
        assert not b.any()


def test_rounds_differ_and_one_comes_again():
    assert torch.equal(measured()[1], measured()[1])
    assert not torch.equal(measured()[1], measured(round=1)[1])


def test_a_model_in_bf16_has_almost_the_same():
    (adapters, ours), (_, theirs) = measured(dtype=torch.bfloat16), measured()
    for slot in adapters.arena.slots:
        a, b = (slot.views(start.unsqueeze(0))[0][0] for start in (ours, theirs))
        assert torch.cosine_similarity(a, b) > 0.99
