"""Scores against the plain way: one candidate at a time, all logits, no padding."""

import pytest
import torch

from xgblora.errors import InputError
from xgblora.scoring import Collator, EncodedExample, OptionScorer, encode
from xgblora.scoring.option_scorer import mean_log_probabilities

# candidates of one and of several tokens, beginnings of one another, two and three of them, long and short prompts
TEXTS = (
    ("a gem It was", (" terrible", " great"), 1),
    ("bland , slow and much too long It was", (" great", " a great delight", " a"), 0),
    ("the cast It", (" is superb", " was terrible and slow"), 1),
    ("x", ("y", "z z z z z z"), 0),
)


@pytest.fixture
def samples(make_sample):
    return [make_sample(prompt, *options, label=label) for prompt, options, label in TEXTS]


@pytest.fixture
def model(make_model, tiny_tokenizer):
    return make_model(vocab_size=len(tiny_tokenizer))


@pytest.fixture
def examples(samples, tiny_tokenizer) -> list[EncodedExample]:
    return [encode(sample, tiny_tokenizer, max_length=64) for sample in samples]


def reference(model, sample, tokenizer) -> list[float]:
    """Mean log-probability of each candidate's option tokens, by a forward of its own over all positions."""
    scores = []
    for text in sample.candidates:
        encoding = tokenizer(text, return_offsets_mapping=True)
        ids = torch.tensor([encoding["input_ids"]])
        start = next(i for i, (_, end) in enumerate(encoding["offset_mapping"]) if end > len(sample.prompt))
        with torch.no_grad():
            log_probabilities = model(ids).logits.log_softmax(dim=-1)
        tokens = [log_probabilities[0, i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])]
        scores.append(sum(tokens) / len(tokens))
    return scores


@torch.no_grad()
def test_scores_are_those_of_one_candidate_at_a_time(model, samples, examples, tiny_tokenizer):
    scores = OptionScorer(model).scores(model, Collator(0)(examples))
    assert scores.dtype == torch.float32
    assert scores.shape == (4, 3)
    for row, sample in zip(scores, samples, strict=True):
        expected = reference(model, sample, tiny_tokenizer)
        assert torch.allclose(row[: len(expected)], torch.tensor(expected), rtol=1e-5, atol=1e-5)
        assert torch.isneginf(row[len(expected) :]).all()


@torch.no_grad()
def test_a_batch_scores_as_its_examples_do_one_by_one(model, examples):
    scorer, collate = OptionScorer(model), Collator(0)
    together = scorer.scores(model, collate(examples))
    for row, example in zip(together, examples, strict=True):
        (alone,) = scorer.scores(model, collate([example]))
        assert torch.allclose(row[: len(alone)], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pad", [0, 5, 300])
def test_the_id_that_pads_does_not_matter(model, examples, pad):
    scorer = OptionScorer(model)
    expected = scorer.scores(model, Collator(0)(examples))
    assert torch.allclose(scorer.scores(model, Collator(pad)(examples)), expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_a_batch_with_padding_are_finite(model, examples):
    batch = Collator(0)(examples)
    scores = OptionScorer(model).scores(model, batch)
    torch.nn.functional.cross_entropy(scores, batch["label"]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_only_the_option_rows_go_through_the_vocabulary_projection(model, examples):
    scorer = OptionScorer(model)
    rows = []
    model.get_output_embeddings().register_forward_hook(
        lambda head, inputs, output: rows.append(output.numel() // output.shape[-1])
    )
    batch = Collator(0)(examples)
    scorer.scores(model, batch)
    assert rows == [batch["rows"].numel()]
    assert rows[0] == 4 * max(len(example.rows) for example in examples)


@torch.no_grad()
def test_sst2_s_two_words_cost_one_row_an_example(model, make_sample, tiny_tokenizer):
    sample = make_sample("a gem It was", " t", " g")
    batch = Collator(0)([encode(sample, tiny_tokenizer, max_length=64)] * 3)
    assert batch["input_ids"].shape[:2] == (3, 1)
    assert batch["rows"].shape == (3, 1)


@torch.no_grad()
def test_outside_scores_the_model_is_as_it_was(model, examples, token_batch):
    batch = token_batch()
    before = model(**batch).logits
    scorer = OptionScorer(model)
    assert torch.equal(model(**batch).logits, before)
    scorer.scores(model, Collator(0)(examples))
    assert torch.equal(model(**batch).logits, before)


@torch.no_grad()
def test_a_forward_that_fails_leaves_the_model_as_it_was(model, examples, token_batch):
    before = model(**token_batch()).logits
    scorer, batch = OptionScorer(model), Collator(0)(examples)
    with pytest.raises(IndexError):
        scorer.scores(model, {**batch, "input_ids": batch["input_ids"] + 10_000})
    assert torch.equal(model(**token_batch()).logits, before)


@torch.no_grad()
def test_two_scorers_on_one_model_do_not_disturb_each_other(model, examples):
    first, second = OptionScorer(model), OptionScorer(model)
    batch = Collator(0)(examples)
    assert torch.equal(first.scores(model, batch), second.scores(model, batch))


@torch.no_grad()
def test_bfloat16_models_give_fp32_scores(make_model, examples, tiny_tokenizer):
    exact, rounded = (
        make_model(dtype=dtype, vocab_size=len(tiny_tokenizer)) for dtype in (torch.float32, torch.bfloat16)
    )
    batch = Collator(0)(examples)
    scores = OptionScorer(rounded).scores(rounded, batch)
    assert scores.dtype == torch.float32
    real = ~torch.isneginf(scores)
    assert torch.allclose(scores[real], OptionScorer(exact).scores(exact, batch)[real], rtol=0.05)


def test_a_candidate_without_tokens_scores_minus_infinity_and_none_is_nan():
    batch = {
        "option_rows": torch.tensor([[[0, 1], [0, 0], [0, 0]]]),
        "option_targets": torch.tensor([[[1, 2], [2, 0], [0, 0]]]),
        "option_mask": torch.tensor([[[1, 1], [1, 0], [0, 0]]]),
    }
    logits = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 1.0, 0.0]]])
    log_probabilities = logits.log_softmax(dim=-1)
    scores = mean_log_probabilities(logits, batch)
    expected = [(log_probabilities[0, 0, 1] + log_probabilities[0, 1, 2]) / 2, log_probabilities[0, 0, 2]]
    assert torch.allclose(scores[0, :2], torch.stack(expected))
    assert scores[0, 2] == float("-inf")


def test_a_model_without_output_embeddings_is_refused(model):
    with pytest.raises(InputError, match="no output embeddings"):
        OptionScorer(model.get_input_embeddings())


@torch.no_grad()
def test_the_shared_model_scores_as_the_plain_way(shared_model, make_sample):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("opt-mini", "stories260K"):
        folder = shared_model(name)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        samples = [
            make_sample("A sad and slow little film. It was", " terrible", " great"),
            make_sample("Fun! It was", " terrible", " great"),
        ]
        batch = Collator(tokenizer.pad_token_id or 0)([encode(s, tokenizer, max_length=128) for s in samples])
        scores = OptionScorer(model).scores(model, batch)
        expected = torch.tensor([reference(model, sample, tokenizer) for sample in samples])
        assert torch.allclose(scores, expected, rtol=1e-4, atol=1e-4)
