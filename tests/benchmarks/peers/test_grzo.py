"""GRZO's step: what the hooks add is the example's own perturbed weights; the update is the weighted sum of those."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers.grzo import EmbeddingDirections, GrzoStep, LinearDirections, NormDirections

EPS, LR, SEED = 1e-3, 1e-3, 17
FORMS = {
    "opt-125m's": {},
    # as opt-350m has it: projections beside the vocabulary, norms after
    "opt-350m's": {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
}


@pytest.fixture(params=FORMS)
def model(request, make_opt):
    return make_opt(dtype=torch.float64, **FORMS[request.param])


@pytest.fixture
def step(model, losses_of):
    return GrzoStep(model, lambda batch: losses_of(model, batch), eps=EPS, lr=LR)


def dense(directions) -> torch.Tensor:
    """The directions of a layer, each as large as its weight: [B, ...]."""
    if isinstance(directions, LinearDirections):
        return directions.base() * directions.left.unsqueeze(2) * directions.right.unsqueeze(1)
    if isinstance(directions, NormDirections):
        return directions.vectors
    found = directions.of_pairs.new_zeros(directions.examples, *directions.layer.weight.shape)
    for example, signs in enumerate(directions.of_pairs):
        for token, sign, row in zip(directions.tokens, signs, directions.rows, strict=True):
            found[example, token] = sign * row
    return found


def names_of(model, directions) -> list[tuple[str, torch.Tensor]]:
    """The layers' names and their dense directions."""
    names = {layer: name for name, layer in model.named_modules()}
    return [(names[of_layer.layer], dense(of_layer)) for of_layer in directions]


def test_the_losses_are_those_of_each_examples_own_weights(model, step, texts, losses_of):
    directions = step.directions(len(texts["label"]), SEED)
    with torch.no_grad():
        found = {size: step.losses_along(directions, texts, size) for size in (EPS, -EPS)}
        unmoved = losses_of(model, texts)
        for size, losses in found.items():
            for example in range(len(unmoved)):
                own = copy.deepcopy(model)
                # the vocabulary's layer is perturbed apart from the embedding whose weight it shares
                own.lm_head.weight = nn.Parameter(own.lm_head.weight.clone())
                for name, along in names_of(model, directions):
                    own.get_submodule(name).weight.add_(size * along[example])
                alone = {name: value[example : example + 1] for name, value in texts.items()}
                assert losses[example].item() == pytest.approx(losses_of(own, alone).item(), abs=1e-12)
                assert abs(losses[example] - unmoved[example]) > 1e-6


def test_the_update_is_the_weighted_sum_of_the_directions(model, step, texts):
    before, examples = copy.deepcopy(model), len(texts["label"])
    directions = step.directions(examples, SEED)
    with torch.no_grad():
        plus, minus = (step.losses_along(directions, texts, size) for size in (EPS, -EPS))
        moves = [(name, along) for name, along in names_of(model, directions) if name != "lm_head"]
        weights = step(texts, SEED)
        halves = (plus - minus) / 2
        torch.testing.assert_close(weights, halves / (halves.std() + 1e-8))
        for name, along in moves:
            gradient = torch.einsum("b,b...->...", weights, along) / (2 * EPS * examples)
            before.get_submodule(name).weight.sub_(LR * gradient)
    assert {name.split(".")[-1] for name, _ in moves} >= {"embed_tokens", "q_proj", "fc2", "final_layer_norm"}
    for (name, ours), theirs in zip(model.named_parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


def test_signs_and_base_differ_between_examples_layers_and_steps(step, texts):
    one, same, other = (step.directions(5, seed) for seed in (1, 1, 2))
    linear = [d for d in one if isinstance(d, LinearDirections)]
    assert all(set(d.left.unique().tolist()) == {-1.0, 1.0} for d in linear)
    assert not torch.equal(linear[0].left[0], linear[0].left[1])
    assert not torch.equal(linear[0].left, linear[1].left)
    for first, again, another in zip(one, same, other, strict=True):
        if isinstance(first, LinearDirections):
            assert torch.equal(dense(first), dense(again)) and not torch.equal(dense(first), dense(another))
            assert torch.equal(first.base(), first.base()) and 0.8 < first.base().std() < 1.2


def test_a_token_that_is_twice_in_a_text_has_one_direction(model, step, texts):
    (embedding,) = (d for d in step.directions(5, SEED) if isinstance(d, EmbeddingDirections))
    added = embedding.added(texts["input_ids"])
    assert torch.equal(added[0, 0], added[0, 1]) and (added.abs() == 1).all()
    absent = [token for token in embedding.tokens.tolist() if token not in texts["input_ids"][1].tolist()]
    assert absent and not dense(embedding)[1, absent].any()


def test_hooks_double_each_product_and_go(model, step, texts, losses_of):
    def products(call) -> int:
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            call()
        counts = counter.get_flop_counts()["Global"]
        return sum(
            count for operation, count in counts.items() if "mm" in str(operation) and "bmm" not in str(operation)
        )

    plain = products(lambda: losses_of(model, texts))
    assert plain and products(lambda: step.losses_along(step.directions(5, SEED), texts, EPS)) == 2 * plain
    assert products(lambda: losses_of(model, texts)) == plain


def test_weights_stay_where_the_learning_rate_is_zero_and_hooks_go_after_an_error(model, texts, losses_of):
    before = copy.deepcopy(model)
    GrzoStep(model, lambda batch: losses_of(model, batch), eps=EPS, lr=0.0)(texts, SEED)
    for ours, theirs in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(KeyError):
        GrzoStep(model, lambda batch: batch["nothing"], eps=EPS, lr=LR)(texts, SEED)
    assert torch.equal(losses_of(model, texts), losses_of(before, texts))
