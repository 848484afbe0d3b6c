"""`evaluate`: the metrics of a model on a task, and what it answered to each example, as MeZO measures them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from xgblora.atomic_file import write_text
from xgblora.errors import InputError
from xgblora.evaluation.demonstrations import Calibration, in_context, without_question
from xgblora.scoring import EncodedExample, in_eval_mode
from xgblora.scoring.forms import form_of
from xgblora.scoring.generation import MAX_NEW_TOKENS, generate_answers
from xgblora.tasks import Sample, Task
from xgblora.tasks.metrics import CHOICE_METRICS, GENERATION_METRICS

# Samples that are encoded at a time: enough to fill batches of like length, few enough for ReCoRD's many candidates.
WINDOW = 1024


@dataclass(frozen=True)
class Record:
    """What became of one example.

    Attributes:
        index: its place among the samples.
        origin: where it came from ("dev.tsv line 7").
        log_probabilities: the mean log-probability of each candidate's option tokens, without calibration; of a
            generation task that of the right answer.
        scores: what decided, one number a candidate; empty for a generation task.
        prediction: the candidate chosen, the first of the best; or the text generated.
        right: the candidates, or answers, that count as right.
        measures: each metric of the task for this example.
    """

    index: int
    origin: str
    log_probabilities: list[float]
    scores: list[float]
    prediction: int | str
    right: tuple[int, ...] | tuple[str, ...]
    measures: Mapping[str, float]

    @property
    def correct(self) -> bool:
        """Whether the candidate chosen is right, or the answer generated is exactly a right one."""
        return bool(self.measures["em" if isinstance(self.prediction, str) else "accuracy"])

    def as_json(self) -> str:
        """The record in one line of JSON."""
        fields = {**vars(self), "correct": self.correct}
        measures = fields.pop("measures")
        return json.dumps(fields | (measures if isinstance(self.prediction, str) else {}))


@dataclass(frozen=True)
class Evaluation:
    """Each metric of the task, the mean over `records`, which are in the order of the samples."""

    metrics: dict[str, float]
    records: list[Record]

    def write(self, path: Path) -> None:
        """Write the records, one line of JSON each; the file appears whole or not at all."""
        write_text(path, "".join(f"{record.as_json()}\n" for record in self.records))


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    samples: Sequence[Sample],
    *,
    max_length: int,
    demonstrations: Sequence[Sample] | Sequence[Sequence[Sample]] = (),
    calibration: Calibration = "none",
    max_new_tokens: int = MAX_NEW_TOKENS,
    tokens: int | None = None,
) -> Evaluation:
    """Measure a model. It is left as it was, and no random number is drawn.

    A candidate's score is the mean log-probability of its tokens; with calibration it is the sum of their
    log-probabilities less the sum that they have after the task's sfc_prompt instead of the question.

    Args:
        model: a language model, or a classifier of one of the kinds in `scoring.forms`.
        tokenizer: its tokenizer.
        task: says whether answers are chosen or generated, how they are measured, and what parts demonstrations.
        samples: one or more samples of the task.
        max_length: longer texts lose tokens at their beginning, where the demonstrations are.
        demonstrations: samples that stand with their right answer before every question; or one such list a sample.
        calibration: "sfc": the texts that calibrate stand alone; "icl_sfc": after the demonstrations.
        max_new_tokens: the most tokens of a generated answer.
        tokens: the most tokens of a forward; None: what suits the device.

    Raises:
        InputError: there are no samples, a text does not fit, or the task cannot be calibrated.
    """
    if not samples:
        raise InputError(f"task {task.name}: there are no samples to evaluate on")
    if task.generation and calibration != "none":
        raise InputError(f"{calibration}=True: the answers of {task.name} are generated, and have no scores")
    asker = _Asker(model, tokenizer, task, max_length, calibration, max_new_tokens, tokens)
    records: list[Record] = []
    with in_eval_mode(model):
        for start in range(0, len(samples), WINDOW):
            window = samples[start : start + WINDOW]
            shown = [_demonstrations_of(demonstrations, start + place) for place in range(len(window))]
            records += asker.records(window, shown, start)
    metrics = {name: sum(record.measures[name] for record in records) / len(records) for name in task.metrics}
    return Evaluation(metrics, records)


@dataclass(frozen=True)
class _Asker:
    """What `evaluate` was given, for all windows of samples."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    task: Task
    max_length: int
    calibration: Calibration
    max_new_tokens: int
    tokens: int | None

    def records(self, samples: Sequence[Sample], shown: Sequence[Sequence[Sample]], start: int) -> list[Record]:
        """The records of `samples`, whose first is number `start`, each asked after the demonstrations in `shown`."""
        asked = self._in_context(samples, shown)
        encoded = self._encoded(asked)
        means = self._means(encoded)
        if self.task.generation:
            scores: list[list[float]] = [[] for _ in samples]
            answers = self._generated(asked)
        else:
            scores = means if self.calibration == "none" else self._calibrated(samples, shown, encoded, means)
            answers = [max(range(len(of_one)), key=of_one.__getitem__) for of_one in scores]
        return [
            self._record(start + place, *of_one)
            for place, of_one in enumerate(zip(samples, means, scores, answers, strict=True))
        ]

    def _record(self, index: int, sample: Sample, means: list[float], scores: list[float], answer: int | str) -> Record:
        right, known = (sample.answers, GENERATION_METRICS) if self.task.generation else (sample.right, CHOICE_METRICS)
        measures = {name: known[name](answer, right) for name in self.task.metrics}
        return Record(index, sample.origin, means, scores, answer, right, measures)

    def _calibrated(
        self,
        samples: Sequence[Sample],
        shown: Sequence[Sequence[Sample]],
        encoded: list[EncodedExample],
        means: list[list[float]],
    ) -> list[list[float]]:
        bare = [without_question(sample) for sample in samples]
        # most tasks calibrate all samples by the same texts
        bare_encoded = self._encoded(self._in_context(bare, shown) if self.calibration == "icl_sfc" else bare)
        distinct = list(dict.fromkeys(bare_encoded))
        sums = dict(zip(distinct, map(_sums, distinct, self._means(distinct)), strict=True))
        return [
            [with_question - without for with_question, without in zip(_sums(one, mean), sums[other], strict=True)]
            for one, mean, other in zip(encoded, means, bare_encoded, strict=True)
        ]

    def _in_context(self, samples: Sequence[Sample], shown: Sequence[Sequence[Sample]]) -> list[Sample]:
        return [in_context(sample, before, self.task.separator) for sample, before in zip(samples, shown, strict=True)]

    def _encoded(self, samples: Sequence[Sample]) -> list[EncodedExample]:
        return form_of(self.model).encode(samples, self.tokenizer, self.model, max_length=self.max_length)

    def _means(self, encoded: list[EncodedExample]) -> list[list[float]]:
        return form_of(self.model).log_probabilities(self.model, encoded, tokens=self.tokens)

    def _generated(self, asked: list[Sample]) -> list[str]:
        return generate_answers(
            self.model,
            self.tokenizer,
            [sample.prompt for sample in asked],
            max_length=self.max_length,
            max_new_tokens=self.max_new_tokens,
            tokens=self.tokens,
        )


def _sums(example: EncodedExample, means: list[float]) -> list[float]:
    return [mean * len(option) for mean, option in zip(means, example.options, strict=True)]


def _demonstrations_of(demonstrations: Sequence[Sample] | Sequence[Sequence[Sample]], index: int) -> Sequence[Sample]:
    return demonstrations if not demonstrations or isinstance(demonstrations[0], Sample) else demonstrations[index]
