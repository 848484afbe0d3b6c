"""Scores equal those of one candidate at a time, with a cache and without, whatever the batches are."""

import pytest
import torch

from xgblora.evaluation import likelihood, log_probabilities
from xgblora.tasks import EncodedExample, encode, load_task


def assert_same(ours: list[list[float]], expected: list[list[float]], atol: float) -> None:
    assert [max(range(len(one)), key=one.__getitem__) for one in ours] == [
        max(range(len(one)), key=one.__getitem__) for one in expected
    ]
    for one, other in zip(ours, expected, strict=True):
        assert one == pytest.approx(other, abs=atol)


@pytest.mark.parametrize(
    "task, count, name", [("SST2", 872, "opt-mini"), ("Copa", 100, "opt-mini"), ("Copa", 100, "stories260K")]
)
def test_every_held_out_example_scores_as_it_does_alone(load_shared, shared_data, plain_scores, name, task, count):
    model, tokenizer = load_shared(name)
    samples = load_task(task, str(shared_data(task.lower()))).valid[:]
    assert len(samples) == count
    scores = log_probabilities(model, [encode(sample, tokenizer, max_length=512) for sample in samples])
    assert_same(scores, plain_scores(model, tokenizer, samples), atol=1e-4)


def test_many_long_candidates_with_a_shared_article_score_as_they_do_alone(load_shared, shared_data, plain_scores):
    model, tokenizer = load_shared("stories260K")
    (sample,) = load_task("ReCoRD", str(shared_data("record"))).valid[:1]
    encoded = encode(sample, tokenizer, max_length=4096)
    assert likelihood.shared_prefix(encoded) > 100
    assert_same(log_probabilities(model, [encoded]), plain_scores(model, tokenizer, [sample]), atol=1e-4)


@pytest.mark.parametrize("worth", [0.0, 2.0], ids=["cache", "plain"])
@pytest.mark.parametrize("tokens", [1, 40, 1000])
def test_the_way_and_the_batches_do_not_matter(
    model, samples, tiny_tokenizer, plain_scores, monkeypatch, worth, tokens
):
    monkeypatch.setattr(likelihood, "WORTH_A_CACHE", worth)
    encoded = [encode(sample, tiny_tokenizer, max_length=64) for sample in samples]
    assert any(likelihood.shared_prefix(example) for example in encoded) == (worth == 0)
    scores = log_probabilities(model, encoded, tokens=tokens)
    assert_same(scores, plain_scores(model, tiny_tokenizer, samples), atol=1e-5)


def test_the_shared_prefix_is_run_once(opt):
    prefix = tuple(range(2, 22))
    example = EncodedExample(
        sequences=tuple((*prefix, 30 + i) for i in range(4)),
        rows=tuple((i, 20) for i in range(4)),
        options=tuple(((i, 40),) for i in range(4)),
        label=0,
    )
    seen = []
    opt.get_input_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    log_probabilities(opt, [example])
    assert seen == [20, 4]


@pytest.mark.parametrize(
    "sequences, row, expected",
    [
        (((1, 2, 3, 4, 5),), 4, 0),
        (((1, 2, 3, 4, 5), (1, 2, 3, 4, 6)), 4, 4),
        (((1, 2, 3, 4, 5), (1, 2, 3, 4, 6)), 3, 3),
        (((1, 2, 3, 4, 5), (1, 9, 3, 4, 6)), 4, 0),
    ],
    ids=["one sequence", "all but the last", "up to the first option token", "too little to pay"],
)
def test_what_is_shared(sequences, row, expected):
    rows = tuple((i, row) for i in range(len(sequences)))
    assert likelihood.shared_prefix(EncodedExample(sequences, rows, (((0, 7),),), 0)) == expected


def test_a_model_that_forgets_tokens_runs_the_plain_way(samples, tiny_tokenizer, plain_scores):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=len(tiny_tokenizer), num_key_value_heads=2, sliding_window=4, **sizes)
    model = MistralForCausalLM(config).eval()
    assert not likelihood.takes_a_cache(model)
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
