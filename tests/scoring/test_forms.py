"""Scores of classification heads, and of decoders after an encoder: those of each text alone."""

import pytest
import torch
import transformers

import xgblora
from xgblora.errors import InputError
from xgblora.objectives.texts import CandidateObjective, classification
from xgblora.scoring.forms import CLASSIFIER, ENCODER_DECODER, form_named, form_of
from xgblora.scoring.forms.classifier import labels_of

TEXTS = ("a warm , funny and wise film", "dull", "the cast is superb and so are the jokes", "not worth the time")


def _random(model):
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(params=["OPTForSequenceClassification", "RobertaForSequenceClassification"])
def classifier(request, tiny_tokenizer):
    sizes = {"vocab_size": len(tiny_tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    own = {"ffn_dim": 64, "word_embed_proj_dim": 32} if request.param.startswith("OPT") else {"intermediate_size": 64}
    model_class = getattr(transformers, request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = model_class.config_class(**sizes, **own, pad_token_id=0, num_labels=3)
        return _random(model_class(config))


@pytest.fixture(params=["t5", "bart"])
def encoder_decoder(request, tiny_tokenizer):
    sizes = {"vocab_size": len(tiny_tokenizer), "d_model": 32, "pad_token_id": 0, "decoder_start_token_id": 1}
    own = {
        "t5": {"d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        "bart": {
            **{"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
            **{"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64},
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.CONFIG_MAPPING[request.param](**sizes, **own[request.param])
        return _random(transformers.AutoModelForSeq2SeqLM.from_config(config))


@pytest.fixture
def samples(make_sample):
    options = (" great", " terrible and slow", " it was")
    return [make_sample(text, *options, label=number % 3) for number, text in enumerate(TEXTS)]


def _scored(model, samples, tokenizer):
    """The scores of training and of an evaluation."""
    form = form_of(model)
    examples = form.encode(samples, tokenizer, model, max_length=32)
    with torch.no_grad():
        trained = form.scorer(model, 32).scores(model, form.collator(0, False)(examples))
    torch.testing.assert_close(torch.tensor(form.log_probabilities(model, examples, tokens=40)), trained)
    return trained


def test_a_head_scores_each_prompt_as_alone(classifier, samples, tiny_tokenizer):
    assert form_of(classifier) is CLASSIFIER
    scores = _scored(classifier, samples, tiny_tokenizer)
    for sample, of_one in zip(samples, scores, strict=True):
        with torch.no_grad():
            logits = classifier(input_ids=torch.tensor([tiny_tokenizer(sample.prompt)["input_ids"]])).logits[0]
        torch.testing.assert_close(of_one, logits.log_softmax(dim=-1), rtol=1e-4, atol=1e-5)


def test_a_decoder_scores_each_answer_as_alone(encoder_decoder, samples, tiny_tokenizer):
    assert form_of(encoder_decoder) is ENCODER_DECODER
    read = []
    hook = encoder_decoder.get_encoder().register_forward_pre_hook(
        lambda module, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    scores = _scored(encoder_decoder, samples, tiny_tokenizer)
    hook.remove()
    # after the trial: a batch of training, and those of the evaluation, each prompt once
    assert len(samples) in read
    for sample, of_one in zip(samples, scores, strict=True):
        prompt = torch.tensor([tiny_tokenizer(sample.prompt)["input_ids"]])
        for candidate, score in zip(sample.candidates, of_one, strict=True):
            ids = tiny_tokenizer(candidate[len(sample.prompt) :])["input_ids"][1:]
            with torch.no_grad():
                logits = encoder_decoder(input_ids=prompt, decoder_input_ids=torch.tensor([[1, *ids[:-1]]])).logits[0]
            chosen = logits.log_softmax(dim=-1)[torch.arange(len(ids)), ids]
            torch.testing.assert_close(score, chosen.mean(), rtol=1e-4, atol=1e-5)


def _assert_signs_stack(model, samples, tokenizer):
    form = form_of(model)
    batch = form.collator(0, False)(form.encode(samples, tokenizer, model, max_length=32))
    gradients = []
    for pairing in ("paired", "sequential"):
        adapters = xgblora.attach(model, "all-linear", alpha=4.0)
        with torch.no_grad():
            adapters.arena.master.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(0))
        objective = CandidateObjective(model, classification)
        zo = xgblora.ZeroOrder(adapters, objective, eps=1e-2, lr=0.0, seed=1, pairing=pairing)
        gradients.append(zo.step(batch).projected_grad)
        xgblora.detach(model, fold=False)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_signs_of_a_head_stack(classifier, samples, tiny_tokenizer):
    _assert_signs_stack(classifier, samples, tiny_tokenizer)


def test_signs_of_an_encoder_and_a_decoder_stack(encoder_decoder, samples, tiny_tokenizer):
    _assert_signs_stack(encoder_decoder, samples, tiny_tokenizer)


def test_long_prompts_lose_tokens_after_the_first(classifier, samples, tiny_tokenizer):
    ids = tiny_tokenizer(samples[2].prompt)["input_ids"]
    (example,) = CLASSIFIER.encode(samples[2:3], tiny_tokenizer, classifier, max_length=4)
    assert example.sequences == ((ids[0], *ids[-3:]),)


def test_labels_are_the_same_for_all_samples(make_sample, classifier, tiny_tokenizer):
    two = make_sample("a gem", " great", " terrible")
    assert labels_of([two, two]) == ("great", "terrible")
    with pytest.raises(InputError, match="are no labels of a head"):
        labels_of([two, make_sample("a gem", " yes", " no")])
    with pytest.raises(InputError, match="has one answer only"):
        labels_of([make_sample("a gem", " great")])
    with pytest.raises(InputError, match="has 2 answers, and the head 3 labels"):
        CLASSIFIER.encode([two], tiny_tokenizer, classifier, max_length=8)


def test_unknown_classes_are_causal_language_models():
    assert form_named("OfMyOwn").writes and form_named(None).writes
