"""`--objective`: which one suits which task, and what a task's samples become for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from xgblora.errors import InputError
from xgblora.evaluation import Record
from xgblora.objectives.answer_f1 import AnswerF1, Question, QuestionCollator, answer_loss
from xgblora.objectives.texts import (
    CandidateObjective,
    LanguageModelObjective,
    LossOfScores,
    classification,
    option_nll,
    zero_one,
)
from xgblora.scoring import in_eval_mode, log_probabilities
from xgblora.scoring.forms import ModelForm, form_of
from xgblora.scoring.generation import check_room, prompt_ids
from xgblora.scoring.greedy_ways import ways_for
from xgblora.scoring.vocabulary import padding_id, rows_of_embeddings
from xgblora.tasks import Sample, Task

# what the block at the start of a run says of each
OBJECTIVES = {
    "option_nll": "loss of the right option",
    "classification": "cross-entropy over the candidates",
    "language_model": "loss of the whole right text",
    "accuracy": "1 - accuracy (no gradient)",
    "f1": "1 - F1 of generated answers (no gradient)",
}
LOSSES_OF_SCORES = {"option_nll": option_nll, "classification": classification, "accuracy": zero_one}
# samples that are encoded to find the longest text: the one with the most tokens is among the longest by characters
MEASURED = 16
WITHOUT_GRADIENT = ("accuracy", "f1")
OF_CANDIDATES = ("classification", "accuracy")


@dataclass(frozen=True)
class TaskObjective:
    """An objective for the samples of a task.

    Attributes:
        objective: `(model, batch) -> losses`.
        to_train: what a training sample becomes.
        to_measure: what a development sample becomes.
        collate: a batch of either.
        mean_loss: the loss of a model on samples of which `evaluate` left these records.
    """

    objective: Callable[[nn.Module, dict], Tensor]
    to_train: Callable[[Sample], Any]
    to_measure: Callable[[Sample], Any]
    collate: Callable[[list], dict[str, Any]]
    mean_loss: Callable[[nn.Module, Sequence[Sample], Sequence[Record]], float]


def check_objective(name: str, task: Task, trainer: str, num_demos: int = 0) -> None:
    """Raise InputError if there is no such objective, or it does not go with the task, trainer or demonstrations."""
    if name not in OBJECTIVES:
        raise InputError(f"objective={name}: must be one of {', '.join(OBJECTIVES)}")
    if name in OF_CANDIDATES and task.generation:
        raise InputError(f"objective={name}: the answers of {task.name} are generated, not chosen")
    if name == "f1" and not task.generation:
        raise InputError(f"objective=f1: the answers of {task.name} are chosen, not generated; use accuracy")
    if name in WITHOUT_GRADIENT and trainer == "regular":
        raise InputError(f"objective={name}: has no gradient, which trainer=regular needs; use --trainer zo")
    if name == "language_model" and num_demos:
        raise InputError(f"num_demos={num_demos}: objective=language_model takes texts without demonstrations")


def prepare_objective(
    name: str,
    task: Task,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_new_tokens: int,
    samples: Sequence[Sample] = (),
) -> TaskObjective:
    """The objective called `name` for a task.

    Args:
        max_length: the longest text in tokens.
        max_new_tokens: the longest generated answer, for `f1`.
        samples: those of the task: the model is tried on texts as long as the longest of them.

    Raises:
        InputError: a text has no room for a generated answer.
    """
    form = form_of(model)
    if not form.writes and (task.generation or name == "language_model"):
        raise InputError(
            f"objective={name}, task {task.name}: {type(model).__name__} ({form.name}) writes no texts here; take "
            "another objective or task"
        )
    to_options = partial(_encode, form, tokenizer, model, max_length=max_length)
    if name == "f1":
        return _of_written_answers(tokenizer, model, max_length, max_new_tokens, samples)
    if name == "language_model":
        whole = partial(to_options, whole_text=True)
        alone = partial(whole, only_right=True)
        texts = LanguageModelObjective(model, longest=_longest(samples, whole))
        return TaskObjective(texts, alone, whole, _collator(tokenizer, model, texts), partial(_loss_of_texts, alone))
    loss = LOSSES_OF_SCORES[name]
    objective = CandidateObjective(model, loss, longest=_longest(samples, to_options))
    return TaskObjective(
        objective,
        partial(to_options, only_right=name == "option_nll"),
        to_options,
        _collator(tokenizer, model, objective),
        partial(_loss_of_scores, loss),
    )


def _encode(
    form: ModelForm, tokenizer: PreTrainedTokenizerBase, model: nn.Module, sample: Sample, **options: Any
) -> Any:
    return form.encode([sample], tokenizer, model, **options)[0]


def _longest(samples: Sequence[Sample], to_text: Callable[[Sample], Any]) -> int | None:
    """Tokens of the longest of the texts with the most characters; None without samples."""
    some = sorted(samples, key=lambda sample: max(map(len, sample.candidates)))[-MEASURED:]
    return max((len(to_text(sample)) for sample in some), default=None)


def _collator(
    tokenizer: PreTrainedTokenizerBase, model: nn.Module, objective: CandidateObjective | LanguageModelObjective
) -> Callable[[list], dict[str, Any]]:
    # wherever there are CUDA graphs, and not only where they are wanted: without them a run has the same bits
    few_shapes = objective.packs and next(model.parameters()).device.type == "cuda"
    return form_of(model).collator(padding_id(tokenizer, rows_of_embeddings(model)), few_shapes)


def _of_written_answers(
    tokenizer: PreTrainedTokenizerBase,
    model: nn.Module,
    max_length: int,
    max_new_tokens: int,
    samples: Sequence[Sample],
) -> TaskObjective:
    check_room(max_length, max_new_tokens)

    def to_question(sample: Sample) -> Question:
        return Question(tuple(prompt_ids(tokenizer, sample.prompt, max_length - max_new_tokens)), sample.answers)

    def mean_loss(model: nn.Module, samples: Sequence[Sample], records: Sequence[Record]) -> float:
        return sum(answer_loss(record.prediction, record.right) for record in records) / len(records)

    # now: with several adapters at once it cannot be tried
    ways_for(model, (_longest(samples, to_question) or 0) + max_new_tokens)
    objective = AnswerF1(tokenizer, max_new_tokens=max_new_tokens)
    collate = QuestionCollator(padding_id(tokenizer, rows_of_embeddings(model)))
    return TaskObjective(objective, to_question, to_question, collate, mean_loss)


def _loss_of_scores(
    loss: LossOfScores, model: nn.Module, samples: Sequence[Sample], records: Sequence[Record]
) -> float:
    losses = (
        # of a generation task the right answer is the only candidate
        loss(torch.tensor([record.log_probabilities]), torch.tensor([sample.label])).item()
        for sample, record in zip(samples, records, strict=True)
    )
    return sum(losses) / len(samples)


def _loss_of_texts(
    to_text: Callable[[Sample], Any], model: nn.Module, samples: Sequence[Sample], records: Sequence[Record]
) -> float:
    with in_eval_mode(model):
        means = log_probabilities(model, [to_text(sample) for sample in samples])
    return -sum(mean for (mean,) in means) / len(samples)
