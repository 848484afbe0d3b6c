"""What a step minimises: the losses themselves, their stacking and accumulation, and which goes with what."""

import pytest
import torch

import xgblora
from xgblora.errors import InputError
from xgblora.objectives.answer_f1 import AnswerF1, Question, QuestionCollator
from xgblora.objectives.of_task import OBJECTIVES, WITHOUT_GRADIENT, check_objective, prepare_objective
from xgblora.objectives.texts import (
    CandidateObjective,
    ChoosingObjective,
    LanguageModelObjective,
    classification,
    model_loss,
    option_nll,
    zero_one,
)
from xgblora.scoring import Collator, encode
from xgblora.tasks import TASKS, Sample
from xgblora.tasks.metrics import f1
from xgblora.zo.zero_order import stacked as stack

PROMPTS = ("a gem It was", "the cast It was", "bland , slow and much too long It was", "not worth the time It was")


@pytest.fixture
def model(make_opt, tiny_tokenizer):
    """A tiny OPT that writes words, and whose choices and answers change with the adapters."""
    model = make_opt(vocab_size=len(tiny_tokenizer), init_std=0.3)
    tokens = tiny_tokenizer.convert_ids_to_tokens(range(len(tiny_tokenizer)))
    pieces = torch.tensor([len(token) < 3 or not token.startswith("Ġ") for token in tokens])
    with torch.no_grad():
        model.get_output_embeddings().weight[pieces] *= 0.1
    return model


@pytest.fixture
def samples() -> list[Sample]:
    """Four questions with candidates."""
    words = ("terrible", "great", "dull indeed")
    return [
        Sample.of_choices(prompt, [f"{prompt} {word}" for word in words], number % 3, "x")
        for number, prompt in enumerate(PROMPTS)
    ]


@pytest.fixture
def questions() -> list[Sample]:
    """Four questions whose answers are generated, with words among them that the model is apt to write."""
    return [Sample.of_answers(prompt, ["great", "long war", "a delight", "mess"], "x") for prompt in PROMPTS]


@pytest.fixture
def prepared(model, tiny_tokenizer, samples, questions):
    """A function `(name)` that gives a `TaskObjective`, and the samples of a task that it suits."""

    def prepare(name: str):
        task, of_task = (TASKS["SQuAD"], questions) if name == "f1" else (TASKS["Copa"], samples)
        return prepare_objective(name, task, model, tiny_tokenizer, max_length=64, max_new_tokens=6), of_task

    return prepare


class TestLossesOfScores:
    """Losses of candidates' scores."""

    def test_option_nll_is_minus_the_score_of_the_right_candidate(self):
        losses = option_nll(torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]), torch.tensor([1, 0]))
        assert losses.tolist() == [2.0, 3.0]

    def test_classification_is_cross_entropy_with_padding_candidates(self):
        scores = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -2.0, float("-inf")]])
        losses = classification(scores, torch.tensor([2, 0]))
        expected = [-torch.log_softmax(torch.tensor([-1.0, -2.0, -3.0]), 0)[2], torch.log1p(torch.tensor(-1.0).exp())]
        assert torch.allclose(losses, torch.stack(expected))

    def test_zero_one_is_1_where_another_candidate_is_best(self):
        scores = torch.tensor([[-2.0, -1.0], [-2.0, -1.0], [-1.0, float("-inf")]])
        losses = zero_one(scores, torch.tensor([1, 0, 0]))
        assert losses.dtype == torch.float32
        assert losses.tolist() == [0.0, 1.0, 0.0]


class TestLanguageModelObjective:
    """The loss of the whole right text."""

    def test_it_is_the_model_s_own_loss_on_each_text_alone(self, prepared, model, tiny_tokenizer):
        prepared, samples = prepared("language_model")
        batch = prepared.collate([prepared.to_train(sample) for sample in samples])
        with torch.no_grad():
            losses = prepared.objective(model, batch)
            for sample, loss in zip(samples, losses, strict=True):
                ids = torch.tensor([tiny_tokenizer(sample.candidates[sample.label])["input_ids"]])
                assert loss == pytest.approx(model_loss(model, {"input_ids": ids, "labels": ids}).item(), rel=1e-5)

    def test_in_evaluation_the_candidates_are_chosen_from_as_ever(self, prepared, model, tiny_tokenizer):
        prepared, samples = prepared("language_model")
        texts = prepared.collate([prepared.to_measure(sample) for sample in samples])
        candidates = Collator(0)([encode(sample, tiny_tokenizer, max_length=64) for sample in samples])
        with torch.no_grad():
            losses, chosen = prepared.objective.losses_and_choices(model, texts)
            _, expected = CandidateObjective(model).losses_and_choices(model, candidates)
            in_training = prepared.objective(model, prepared.collate([prepared.to_train(one) for one in samples]))
        assert torch.equal(chosen - texts["label"], expected - candidates["label"])
        assert torch.allclose(losses, in_training, rtol=1e-5)

    def test_the_mean_loss_of_samples_is_that_of_their_batch(self, prepared, model):
        prepared, samples = prepared("language_model")
        with torch.no_grad():
            losses = prepared.objective(model, prepared.collate([prepared.to_train(sample) for sample in samples]))
        assert prepared.mean_loss(model, samples, []) == pytest.approx(losses.mean().item(), rel=1e-5)

    def test_a_generated_answer_has_one_too(self, model, tiny_tokenizer, questions):
        prepared = prepare_objective(
            "language_model", TASKS["SQuAD"], model, tiny_tokenizer, max_length=64, max_new_tokens=6
        )
        (option,) = prepared.to_measure(questions[0]).options[:1]
        assert len(option) == len(tiny_tokenizer(questions[0].candidates[0])["input_ids"]) - 1
        assert torch.isfinite(prepared.objective(model, prepared.collate([prepared.to_train(questions[0])]))).all()


class Writer(torch.nn.Module):
    """Writes each row's own text."""

    def __init__(self, texts: list[list[int]]):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.texts = texts

    def generate(self, input_ids, attention_mask, generation_config):
        width = max(map(len, self.texts))
        rows = [text + [generation_config.pad_token_id] * (width - len(text)) for text in self.texts]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)


def test_f1_is_that_of_the_best_answer_in_every_group_of_a_stacked_batch(tiny_tokenizer):
    texts = ["great film\nmore", "slow", "dull", "the plot"]
    model = Writer([tiny_tokenizer.encode(text, add_special_tokens=False) for text in texts])
    batch = QuestionCollator(0)([Question((5, 6), ("great", "a gem")), Question((5,), ("slow and long", "plot"))])
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 1]]
    stacked = stack(batch, 2, 2)
    losses = AnswerF1(tiny_tokenizer, max_new_tokens=6)(model, stacked)
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx([1 - f1("great film", ["great"]), 1 - f1("slow", ["slow and long"]), 1, 0])


def losses_of_signs(model, prepared, parts, seed, **settings):
    """The losses of each sign over the accumulated `parts`, and the projected gradient."""
    adapters = xgblora.attach(model, ["q_proj", "v_proj"], alpha=16.0, seed=0)
    zo = xgblora.ZeroOrder(adapters, prepared.objective, eps=0.2, lr=0.0, directions=2, seed=seed, **settings)
    for part in parts:
        zo.estimate(prepared.collate([prepared.to_train(sample) for sample in part]), weight=1 / len(parts))
    losses, result = zo._losses.clone(), zo.update()
    xgblora.detach(model)
    return losses, result.projected_grad


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_accumulated_batches_are_one_batch_of_both(prepared, model, name):
    prepared, samples = prepared(name)
    whole, projected = losses_of_signs(model, prepared, [samples], seed=1)
    halves, accumulated = losses_of_signs(model, prepared, [samples[:2], samples[2:]], seed=1)
    assert whole.unique().numel() > 1
    if name == "accuracy":
        assert torch.equal(halves, whole)
        assert torch.equal(accumulated, projected)
    assert torch.allclose(halves, whole, rtol=1e-5)
    assert torch.allclose(accumulated, projected, atol=1e-4)


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_stacked_signs_and_directions_give_the_losses_of_one_after_the_other(prepared, model, name):
    prepared, samples = prepared(name)
    paired, _ = losses_of_signs(model, prepared, [samples], seed=1, pairing="paired")
    sequential, _ = losses_of_signs(model, prepared, [samples], seed=1, pairing="sequential")
    assert torch.equal(paired, sequential)


def test_what_says_which_candidate_was_chosen(model, tiny_tokenizer):
    assert isinstance(CandidateObjective(model, zero_one), ChoosingObjective)
    assert isinstance(LanguageModelObjective(model), ChoosingObjective)
    assert not isinstance(AnswerF1(tiny_tokenizer, max_new_tokens=4), ChoosingObjective)
    assert not isinstance(model_loss, ChoosingObjective)


@pytest.mark.parametrize(
    "name, task, trainer, demos, said",
    [
        ("mse", "SST2", "zo", 0, "objective=mse: must be one of option_nll, classification, language_model, "),
        ("classification", "SQuAD", "zo", 0, "objective=classification: the answers of SQuAD are generated, not"),
        ("accuracy", "DROP", "zo", 0, "objective=accuracy: the answers of DROP are generated, not chosen"),
        ("f1", "SST2", "zo", 0, "objective=f1: the answers of SST2 are chosen, not generated; use accuracy"),
        ("accuracy", "SST2", "regular", 0, "objective=accuracy: has no gradient, .*; use --trainer zo"),
        ("f1", "SQuAD", "regular", 0, "objective=f1: has no gradient, .*; use --trainer zo"),
        ("language_model", "SST2", "none", 2, "num_demos=2: objective=language_model takes texts without"),
    ],
)
def test_objectives_that_do_not_go_with_the_run_are_refused(name, task, trainer, demos, said):
    with pytest.raises(InputError, match=said):
        check_objective(name, TASKS[task], trainer, demos)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_the_others(task):
    for name in ("option_nll", "language_model", "f1" if TASKS[task].generation else "accuracy"):
        check_objective(name, TASKS[task], "zo")
