"""Scores equal those of one candidate at a time, with a cache and without, whatever the batches are."""

import pytest
import torch

from xgblora.scoring import EncodedExample, encode, likelihood, log_probabilities, shared_prefixes
from xgblora.scoring.shared_prefixes import prefix_groups
from xgblora.tasks import load_task


def assert_same(ours: list[list[float]], expected: list[list[float]], atol: float) -> None:
    assert [max(range(len(one)), key=one.__getitem__) for one in ours] == [
        max(range(len(one)), key=one.__getitem__) for one in expected
    ]
    for one, other in zip(ours, expected, strict=True):
        assert one == pytest.approx(other, abs=atol)


@pytest.mark.parametrize(
    "task, every, name", [("SST2", 4, "opt-mini"), ("Copa", 1, "opt-mini"), ("Copa", 1, "stories260K")]
)
def test_held_out_examples_score_as_they_do_alone(load_shared, shared_data, plain_scores, name, task, every):
    model, tokenizer = load_shared(name)
    samples = load_task(task, str(shared_data(task.lower()))).valid[:][::every]
    assert len(samples) >= 100
    scores = log_probabilities(model, [encode(sample, tokenizer, max_length=512) for sample in samples])
    assert_same(scores, plain_scores(model, tokenizer, samples), atol=1e-4)


def test_many_long_candidates_with_a_shared_article_score_as_they_do_alone(load_shared, shared_data, plain_scores):
    model, tokenizer = load_shared("stories260K")
    (sample,) = load_task("ReCoRD", str(shared_data("record"))).valid[:1]
    encoded = encode(sample, tokenizer, max_length=4096)
    (group,) = prefix_groups(likelihood._texts(encoded, 0))
    assert group.shared > 100
    assert_same(log_probabilities(model, [encoded]), plain_scores(model, tokenizer, [sample]), atol=1e-4)


@pytest.mark.parametrize("worth", [0.0, 2.0], ids=["shared", "whole"])
@pytest.mark.parametrize(("tokens", "row"), [(1, 1), (1, 512), (1000, 512)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_way_and_the_batches_do_not_matter(
    model, samples, tiny_tokenizer, plain_scores, monkeypatch, worth, tokens, row, attention
):
    model.set_attn_implementation(attention)
    monkeypatch.setattr(shared_prefixes, "WORTH_SHARING", worth)
    monkeypatch.setattr(likelihood, "ROW", row)
    encoded = [encode(sample, tiny_tokenizer, max_length=64) for sample in samples]
    scores = log_probabilities(model, encoded, tokens=tokens)
    assert_same(scores, plain_scores(model, tiny_tokenizer, samples), atol=1e-5)


@pytest.fixture
def tokens_run(opt):
    """The tokens of each forward of `opt`, those of the trial not among them."""
    seen = []
    log_probabilities(opt, alike(1))

    def note(module, inputs, output):
        seen.append(inputs[0].numel())

    opt.get_input_embeddings().register_forward_hook(note)
    return lambda: seen


def alike(*counts: int, prefix: int = 20) -> list[EncodedExample]:
    """Examples of so many sequences, which share a prefix and end in one token."""
    shared = tuple(range(2, 2 + prefix))
    return [
        EncodedExample(
            sequences=tuple((*shared, 30 + 4 * number + i) for i in range(count)),
            rows=tuple((i, prefix) for i in range(count)),
            options=tuple(((i, 40),) for i in range(count)),
            label=0,
        )
        for number, count in enumerate(counts)
    ]


@pytest.mark.parametrize("counts", [(4,), (1, 1, 1, 1), (2, 1, 1)])
def test_a_prefix_that_texts_share_is_run_once_of_whichever_examples_they_are(opt, tokens_run, counts):
    log_probabilities(opt, alike(*counts))
    assert tokens_run() == [20, 4]


def test_the_last_layer_of_a_prefix_gives_keys_and_values_and_one_row(opt):
    seen = []
    layer = opt.model.decoder.layers[-1]
    layer.fc1.register_forward_hook(lambda _, inputs, output: seen.append(output[..., 0].numel()))
    log_probabilities(opt, alike(2))
    assert seen[-2:] == [1, 2]


def test_a_model_that_forgets_tokens_runs_the_plain_way(samples, tiny_tokenizer, plain_scores):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=len(tiny_tokenizer), num_key_value_heads=2, sliding_window=4, **sizes)
    model = MistralForCausalLM(config).eval()
    encoded = [encode(sample, tiny_tokenizer, max_length=64) for sample in samples]
    assert_same(log_probabilities(model, encoded), plain_scores(model, tiny_tokenizer, samples), atol=1e-5)


def test_no_hook_is_left_even_where_a_forward_fails(opt, samples, tiny_tokenizer):
    encoded = [encode(sample, tiny_tokenizer, max_length=64) for sample in samples]
    log_probabilities(opt, encoded)
    with pytest.raises(IndexError):
        log_probabilities(opt, [EncodedExample(((1, 10_000),), ((0, 1),), (((0, 5),),), 0)])
    assert not opt.get_output_embeddings()._forward_pre_hooks


def test_no_examples_have_no_scores(opt):
    assert log_probabilities(opt, []) == []


def test_bfloat16_scores_are_near(make_opt, samples, tiny_tokenizer):
    encoded = [encode(sample, tiny_tokenizer, max_length=64) for sample in samples]
    exact, rounded = (
        log_probabilities(make_opt(dtype=dtype, vocab_size=len(tiny_tokenizer)), encoded)
        for dtype in (torch.float32, torch.bfloat16)
    )
    for one, other in zip(exact, rounded, strict=True):
        assert other == pytest.approx(one, rel=0.05)
