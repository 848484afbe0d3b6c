"""Scores against the plain way: one candidate at a time, all logits, no padding."""

import pytest
import torch

import xgblora
from xgblora.errors import InputError
from xgblora.scoring import Collator, EncodedExample, OptionScorer, encode
from xgblora.scoring.option_scorer import mean_log_probabilities
from xgblora.scoring.together import ALL, rules_for

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


# lengths and candidates, each one token after the last of its text
CHOICES = ((5, (7, 9)), (11, (9, 7, 12)), (3, (20, 21)))


def choices(vocabulary: int) -> list[EncodedExample]:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(2, vocabulary, (length,), generator=generator).tolist() for length, _ in CHOICES]
    return [
        EncodedExample((tuple(text),), ((0, len(text) - 1),), tuple(((0, word),) for word in words), 0)
        for text, (_, words) in zip(texts, CHOICES, strict=True)
    ]


def less_their_mean(scores: torch.Tensor) -> torch.Tensor:
    there = scores.isfinite()
    return scores - scores.where(there, 0).sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True)


def words_computed(model) -> list[int]:
    """Grows by the words that each call of the output embeddings computed."""
    counts: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda head, inputs, output: counts.append(output.numel()))
    return counts


@torch.no_grad()
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("form", ["packed", "padded", "on the right", "of one length"])
def test_choices_among_tokens_differ_by_the_same_amounts_without_the_vocabulary(model, form, copies):
    scorer = OptionScorer(model)
    batch = Collator(0)(choices(model.config.vocab_size))
    batch = {name: torch.cat([value] * copies) if torch.is_tensor(value) else value for name, value in batch.items()}
    batch |= {"copies": copies, "groups": copies}
    if form != "packed":
        del batch["grid"]
    if form not in ("packed", "padded"):
        scorer.packs, scorer._together = False, ALL if form == "on the right" else rules_for(model, 32)[-1]
    expected = scorer.scores(model, batch)
    computed = words_computed(model)
    made = scorer.relative_scores(model, batch)
    assert sum(computed) == 0
    torch.testing.assert_close(less_their_mean(made), less_their_mean(expected), rtol=1e-4, atol=1e-5)
    assert torch.equal(made.argmax(dim=1), expected.argmax(dim=1))


def test_gradients_of_choices_are_those_of_the_whole_vocabulary(make_opt):
    model = make_opt()
    batch = Collator(0)(choices(model.config.vocab_size))
    scorer, gradients = OptionScorer(model), []
    for scores in (scorer.scores, scorer.relative_scores):
        model.zero_grad()
        torch.nn.functional.cross_entropy(scores(model, batch), batch["label"]).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_where_words_depend_on_one_another_all_are_computed_and_the_log_says_why(make_opt, caplog):
    model = make_opt()

    def over_the_largest(model, inputs, output):
        output.logits = output.logits / output.logits.abs().amax(dim=-1, keepdim=True)

    model.register_forward_hook(over_the_largest)
    with caplog.at_level("INFO", logger="xgblora"):
        scorer = OptionScorer(model)
    assert "The whole vocabulary is computed: the scores of candidates differ by other amounts then" in caplog.messages
    batch = Collator(0)(choices(model.config.vocab_size))
    assert torch.equal(scorer.relative_scores(model, batch), scorer.scores(model, batch))


@torch.no_grad()
def test_several_tokens_and_an_adapted_vocabulary_have_the_scores_themselves(make_opt, examples, tiny_tokenizer):
    model = make_opt(vocab_size=len(tiny_tokenizer))
    scorer, batch = OptionScorer(model), Collator(0)(examples)
    assert torch.equal(scorer.relative_scores(model, batch), scorer.scores(model, batch))
    adapted = make_opt(tie_word_embeddings=False)
    xgblora.attach(adapted, ["lm_head"], alpha=1.0)
    scorer, batch = OptionScorer(adapted), Collator(0)(choices(adapted.config.vocab_size))
    assert torch.equal(scorer.relative_scores(adapted, batch), scorer.scores(adapted, batch))


@torch.no_grad()
@pytest.mark.parametrize("copies", [1, 2])
def test_an_adapter_that_comes_round_the_vocabulary_afterwards_is_read_and_goes_again(
    make_opt, randomise_adapters, copies
):
    model = make_opt(tie_word_embeddings=False)
    scorer, batch = OptionScorer(model), Collator(0)(choices(model.config.vocab_size))
    computed = words_computed(model)
    plain = scorer.relative_scores(model, batch)
    assert sum(computed) == 0
    adapters = xgblora.attach(model, ["lm_head"], alpha=4.0)
    randomise_adapters(adapters)
    expected = OptionScorer(model).scores(model, batch)
    adapters.arena.allocate_live(copies, torch.float32)
    adapters.arena.read_live(0, copies)
    repeated = {name: torch.cat([value] * copies) if torch.is_tensor(value) else value for name, value in batch.items()}
    repeated |= {"copies": copies, "groups": copies}
    for scores in (scorer.scores, scorer.relative_scores):
        torch.testing.assert_close(scores(model, repeated), expected.repeat(copies, 1), rtol=1e-5, atol=1e-5)
    xgblora.detach(model, fold=False)
    assert torch.equal(scorer.relative_scores(model, batch), plain)
