"""What a run says about its model before and after training: the task's metrics, the loss, and every answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xgblora.errors import InputError
from xgblora.evaluation import Evaluation, draw_demonstrations, evaluate
from xgblora.evaluation.demonstrations import Calibration, without_question
from xgblora.objectives.of_task import TaskObjective
from xgblora.scoring.encoding import refuse_same_tokens
from xgblora.scoring.forms import form_of
from xgblora.scoring.generation import check_room
from xgblora.scoring.vocabulary import refuse_unknown_ids, rows_of_embeddings
from xgblora.tasks import Sample, SampledSets, Splits, Task
from xgblora.training.task_flags import TaskArguments


@dataclass(frozen=True)
class Measurement:
    """How the model of a run is measured, the same way each time.

    Attributes:
        task: the task.
        sets: its samples; `dev` may be empty.
        tokenizer: of the model.
        objective: the loss in training.
        max_length: the longest text in tokens.
        demonstrations: as of `evaluate`.
        calibration: as of `evaluate`.
        max_new_tokens: the longest generated answer.
    """

    task: Task
    sets: SampledSets
    tokenizer: PreTrainedTokenizerBase
    objective: TaskObjective
    max_length: int
    demonstrations: Sequence[Sample] | Sequence[Sequence[Sample]]
    calibration: Calibration
    max_new_tokens: int

    def check(self, model: PreTrainedModel) -> None:
        """Raise InputError if a sample cannot be measured, now and not after something was written."""
        rows = rows_of_embeddings(model)
        encode = partial(form_of(model).encode, tokenizer=self.tokenizer, model=model, max_length=self.max_length)
        for sample in self.sets.evaluation:
            (example,) = encode([sample])
            refuse_unknown_ids(self.tokenizer, rows, example.ids)
            refuse_same_tokens(sample, example, self.tokenizer)
        for sample in _distinct(self.demonstrations):
            refuse_unknown_ids(self.tokenizer, rows, self.tokenizer.encode(sample.demonstration))
        if self.calibration != "none":
            encode([without_question(self.sets.evaluation[0])])
        if self.task.generation:
            check_room(self.max_length, self.max_new_tokens)

    def of(self, model: PreTrainedModel) -> tuple[dict[str, dict], Evaluation]:
        """Metrics (the main one first), loss and examples of the sets by name, and the answers to the held-out set."""
        measured = {}
        for name, samples in (("dev", self.sets.dev), ("eval", self.sets.evaluation)):
            if samples:
                evaluation = evaluate(
                    model,
                    self.tokenizer,
                    self.task,
                    samples,
                    max_length=self.max_length,
                    demonstrations=self.demonstrations,
                    calibration=self.calibration,
                    max_new_tokens=self.max_new_tokens,
                )
                loss = self.objective.mean_loss(model, samples, evaluation.records)
                measured[name] = {**evaluation.metrics, "loss": loss, "examples": len(samples)}
        return measured, evaluation


def demonstrations_for(
    flags: TaskArguments, splits: Splits, sets: SampledSets, seed: int
) -> Sequence[Sample] | Sequence[Sequence[Sample]]:
    """The demonstrations that the flags ask for: the first training examples, or a set for each held-out example.

    Raises:
        InputError: there are too few training examples.
    """
    if flags.one_demo_set_per_example:
        return draw_demonstrations(splits.train, flags.num_demos, sets=len(sets.evaluation), seed=seed)
    if flags.num_demos > len(sets.train):
        raise InputError(f"num_demos={flags.num_demos}: there are only {len(sets.train)} training examples (num_train)")
    return sets.train[: flags.num_demos]


def _distinct(demonstrations: Sequence[Sample] | Sequence[Sequence[Sample]]) -> Iterable[Sample]:
    """Each demonstration once, whether there is one set of them or one for each example."""
    sets = [[one] if isinstance(one, Sample) else one for one in demonstrations]
    return dict.fromkeys(sample for of_one in sets for sample in of_one)


def calibration_for(flags: TaskArguments) -> Calibration:
    """The calibration that the flags ask for."""
    return "sfc" if flags.sfc else "icl_sfc" if flags.icl_sfc else "none"


def check_measurement(flags: TaskArguments, task: Task, trainer: str) -> None:
    """Raise InputError if the flags of an evaluation contradict each other, the task or the trainer."""
    if flags.num_demos < 0:
        raise InputError(f"num_demos={flags.num_demos}: must be 0 or more")
    for name in ("num_demos", "sfc", "icl_sfc"):
        if getattr(flags, name) and trainer != "none":
            raise InputError(f"{name}={getattr(flags, name)}: is for evaluation without training; give --trainer none")
    for name in ("one_demo_set_per_example", "icl_sfc"):
        if getattr(flags, name) and not flags.num_demos:
            raise InputError(f"{name}=True: needs demonstrations; give --num_demos")
    if flags.sfc and flags.icl_sfc:
        raise InputError("--sfc and --icl_sfc: choose one of them")
    if flags.one_demo_set_per_example and flags.num_dev:
        raise InputError(
            f"one_demo_set_per_example=True: draws from the whole training split, so that num_dev={flags.num_dev} "
            "examples of it cannot be held out; give --num_dev 0"
        )
    for name in ("sfc", "icl_sfc"):
        if getattr(flags, name) and task.generation:
            raise InputError(f"{name}=True: the answers of {task.name} are generated, and have no scores to calibrate")
