"""Masked language models: answers are masks in their text, and their scores those of each text alone."""

import pytest
import torch
import transformers

import xgblora
from xgblora.errors import InputError
from xgblora.evaluation import evaluate
from xgblora.objectives.of_task import prepare_objective
from xgblora.objectives.texts import CandidateObjective, classification
from xgblora.scoring import Collator, OptionScorer, log_probabilities
from xgblora.scoring.forms import CAUSAL, MASKED, saved_form
from xgblora.scoring.masked import encode_with_masks, fills_masks, mask_token

WORDS = [
    *("[PAD]", "[MASK]", "[CLS]", "[SEP]"),
    *("a", "film", "was", "it", "good", "bad", "great", "and", "terrible", ",", "so", "very", "dull"),
]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OWN = {
    "bert": {"intermediate_size": 64},
    "roberta": {"intermediate_size": 64},
    "deberta-v2": {"intermediate_size": 64, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {"intermediate_size": 64, "local_attention": 4, "global_attn_every_n_layers": 2},
}
SAMPLES = (
    ("a film so very dull and so terrible it was", " bad", " good"),
    ("it was", " great", " very dull"),
    ("a film , great and very good , it was", " so good", " bad"),
)


@pytest.fixture
def tokenizer():
    """Words, with a beginning and an end about each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    fast = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[PAD]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad": "[PAD]", "mask": "[MASK]", "cls": "[CLS]", "sep": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, **{f"{name}_token": token for name, token in names.items()}
    )


@pytest.fixture(params=OWN)
def model(request):
    """A small masked language model, of each kind in a run of the test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        config = transformers.CONFIG_MAPPING[request.param](**{**SIZES, **OWN[request.param], **special})
        model = transformers.AutoModelForMaskedLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    return model


@pytest.fixture
def samples(make_sample):
    return [make_sample(prompt, *options) for prompt, *options in SAMPLES]


@pytest.fixture
def examples(samples, tokenizer):
    return encode_with_masks(samples, tokenizer, tokenizer.mask_token_id, max_length=32)


@torch.no_grad()
def plainly(model, tokenizer, sample) -> list[float]:
    """Mean log-probability of each candidate's tokens, by a forward of its own with masks in their place."""
    scores = []
    for text in sample.candidates:
        ids, prompt = tokenizer(text)["input_ids"], len(tokenizer(sample.prompt)["input_ids"]) - 1
        places = range(prompt, len(ids) - 1)
        masked = [1 if place in places else token for place, token in enumerate(ids)]
        logits = model(input_ids=torch.tensor([masked])).logits[0].log_softmax(dim=-1)
        scores.append(sum(logits[place, ids[place]].item() for place in places) / len(places))
    return scores


def test_candidates_of_as_many_tokens_are_one_text_with_its_end(examples):
    one, two, three = examples
    assert one.sequences == ((2, 4, 5, 14, 15, 16, 11, 14, 12, 7, 6, 1, 3),)
    assert one.rows == ((0, 11),)
    assert one.options == (((0, 9),), ((0, 8),))
    assert two.sequences == ((2, 7, 6, 1, 3), (2, 7, 6, 1, 1, 3))
    assert two.options == (((0, 10),), ((1, 15), (2, 16)))
    assert len(three) == 14


def test_long_texts_lose_tokens_after_the_first(samples, tokenizer):
    (short,) = encode_with_masks(samples[:1], tokenizer, 1, max_length=6)
    assert short.sequences == ((2, 12, 7, 6, 1, 3),)
    with pytest.raises(InputError, match="the option needs 1 tokens and a prompt"):
        encode_with_masks(samples[:1], tokenizer, 1, max_length=3)


def test_training_and_evaluation_score_each_text_as_alone(model, samples, examples, tokenizer):
    expected = torch.tensor([plainly(model, tokenizer, sample) for sample in samples])
    scorer = OptionScorer(model)
    assert not scorer.packs
    with torch.no_grad():
        scores = scorer.scores(model, Collator(0)(examples))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(log_probabilities(model, examples)), expected, rtol=1e-4, atol=1e-4)


def test_steps_and_a_merge(model, examples):
    adapters = xgblora.attach(model, "all-linear", alpha=4.0)
    objective, batch = CandidateObjective(model, classification), Collator(0)(examples)
    booster = xgblora.Booster(adapters)
    zo = xgblora.ZeroOrder(adapters, objective, eps=1e-2, lr=1e-2, seed=1)
    assert zo.step(batch).projected_grad.abs().min() > 0
    adapters.arena.read_master()
    objective(model, batch).mean().backward()
    assert all(layer.b.grad.abs().max() > 0 for layer in adapters.layers.values())
    before = log_probabilities(model, examples)
    booster.merge()
    for one, other in zip(log_probabilities(model, examples), before, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_backpropagation_learns_words_for_good_and_bad(model, make_sample, tokenizer):
    texts = [
        ("a film so very dull it was", 1),
        ("a film so great it was", 0),
        ("dull , it was", 1),
        ("great it was", 0),
    ]
    samples = [make_sample(text, " good", " bad", label=label) for text, label in texts]
    batch = Collator(0)(encode_with_masks(samples, tokenizer, 1, max_length=32))
    adapters = xgblora.attach(model, "all-linear", alpha=4.0)
    objective = CandidateObjective(model, classification)
    optimizer = torch.optim.Adam([part for layer in adapters.layers.values() for part in (layer.a, layer.b)], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        objective(model, batch).mean().backward()
        optimizer.step()
    _, chosen = objective.losses_and_choices(model, batch)
    assert chosen.tolist() == [label for _, label in texts]


def test_an_evaluation_and_an_objective_of_a_task_use_masks(model, samples, tokenizer):
    from xgblora.tasks import Task

    task = Task(name="words", to_sample=None)
    evaluation = evaluate(model, tokenizer, task, samples, max_length=32)
    for record, sample in zip(evaluation.records, samples, strict=True):
        assert record.log_probabilities == pytest.approx(plainly(model, tokenizer, sample), rel=1e-4)
    options = {"max_length": 32, "max_new_tokens": 1}
    prepared = prepare_objective("classification", task, model, tokenizer, samples=samples, **options)
    assert prepared.to_train(samples[0]).sequences[0][11] == tokenizer.mask_token_id
    with pytest.raises(InputError, match=r"objective=language_model, .* \(masked language model\) writes no texts"):
        prepare_objective("language_model", task, model, tokenizer, **options)


def test_a_folder_is_loaded_as_what_it_was_saved_as(model, make_llama, tmp_path, tokenizer):
    model.save_pretrained(tmp_path / "masked")
    make_llama().save_pretrained(tmp_path / "causal")
    assert saved_form(str(tmp_path / "masked")) is MASKED
    assert saved_form(str(tmp_path / "causal")) is CAUSAL
    assert fills_masks(model)
    assert mask_token(make_llama(), tokenizer) is None
    tokenizer.mask_token = None
    with pytest.raises(InputError, match="fills masks, and its tokenizer has no mask token"):
        mask_token(model, tokenizer)
