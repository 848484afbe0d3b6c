"""`prepare`, the second stage of a run: its data, its model and its trainer, checked; nothing is written yet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import EvalPrediction

from xgblora.errors import in_one_line
from xgblora.objectives.of_task import prepare_objective
from xgblora.records import base_identity
from xgblora.runs.language_model import load_model, longest_text
from xgblora.runs.measurement import Measurement, calibration_for, demonstrations_for
from xgblora.runs.plan import Plan, sampling_seed
from xgblora.scoring import EncodedExample
from xgblora.scoring.encoding import refuse_same_tokens
from xgblora.scoring.forms.classifier import labels_of
from xgblora.scoring.vocabulary import refuse_unknown_ids, rows_of_embeddings
from xgblora.tasks import Sample, SampledSets, Splits, Task, sample_sets
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.from_flags import trainable_of
from xgblora.training.run_identity import identity_of_examples, identity_of_task
from xgblora.training.task_flags import TaskArguments
from xgblora.training.trainer import XGBLoRATrainer


@dataclass(frozen=True)
class PreparedRun:
    """A run of which everything was checked.

    Attributes:
        plan: what the flags decide.
        trainer: with the model and its adapters.
        measurement: how the model is measured before and after training.
    """

    plan: Plan
    trainer: XGBLoRATrainer
    measurement: Measurement


@dataclass(frozen=True)
class Loaded:
    """The model of a run and its data, checked.

    Attributes:
        model: as it is, without adapters.
        measurement: how it is measured.
        train, dev: the examples, encoded for the objective.
        labels: those of the head; None without one.
    """

    model: PreTrainedModel
    measurement: Measurement
    train: Sequence
    dev: Sequence
    labels: tuple[str, ...] | None


def prepare(plan: Plan) -> PreparedRun:
    """Load the data and the model, and make the trainer.

    Nothing is written; transformers makes the folder of the run, with `dry_run` not even that.

    Raises:
        InputError: the data, the model or a package does not go with the flags.
    """
    loaded = load(plan)
    _refuse_missing_optimizer(plan.args, loaded.model)
    return PreparedRun(plan, _trainer(plan, loaded), loaded.measurement)


def load(plan: Plan) -> Loaded:
    """Load the data and the model; nothing is written.

    Raises:
        InputError: the data or the model does not go with the flags.
    """
    task, args = plan.task, plan.args
    set_seed(args.seed)
    splits, sets = draw_samples(task, plan.chosen, args.seed)
    demonstrations = demonstrations_for(task, splits, sets, plan.sampling_seed)
    labels = labels_of([*sets.train, *sets.dev, *sets.evaluation]) if task.head else None
    model, tokenizer = load_model(
        task.model_name,
        dtype=task.dtype,
        device=args.device,
        device_map=task.device_map,
        trust_remote_code=task.trust_remote_code,
        labels=labels,
        seed=args.seed,
    )
    length = longest_text(model, tokenizer, task.max_length)
    objective = prepare_objective(
        task.objective,
        plan.chosen,
        model,
        tokenizer,
        max_length=length,
        max_new_tokens=task.max_new_tokens,
        samples=[*sets.train, *sets.dev],
    )
    train = [objective.to_train(sample) for sample in sets.train]
    dev = [objective.to_measure(sample) for sample in sets.dev]
    _refuse_what_does_not_fit(model, tokenizer, zip((*sets.train, *sets.dev), (*train, *dev), strict=True))
    # sorted by length, so that a batch of the evaluation has little padding
    dev.sort(key=len)
    measurement = Measurement(
        plan.chosen,
        sets,
        tokenizer,
        objective,
        max_length=length,
        demonstrations=demonstrations,
        calibration=calibration_for(task),
        max_new_tokens=task.max_new_tokens,
    )
    measurement.check(model)
    return Loaded(model, measurement, train, dev, labels)


def draw_samples(task: TaskArguments, chosen: Task, seed: int) -> tuple[Splits, SampledSets]:
    """The splits of the task `chosen`, and the samples of a run with `seed`.

    Raises:
        InputError: a file is missing or wrong, or there are too few examples.
    """
    splits = chosen.load(task.data_dir)
    counts = {name: getattr(task, name) for name in ("num_train", "num_dev", "num_eval")}
    return splits, sample_sets(splits, **counts, seed=sampling_seed(task, seed))


def _refuse_what_does_not_fit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Iterable[tuple[Sample, Any]]
) -> None:
    rows = rows_of_embeddings(model)
    for sample, example in examples:
        refuse_unknown_ids(tokenizer, rows, example.ids)
        if isinstance(example, EncodedExample):
            refuse_same_tokens(sample, example, tokenizer)


def _refuse_missing_optimizer(args: XGBLoRAArguments, model: nn.Module) -> None:
    """Now, and not when training begins: nothing is written yet, and many optimizers are packages of their own."""
    if args.trainer == "regular":
        with in_one_line(ValueError, ImportError, about=f"optim={args.optim.value}: "):
            XGBLoRATrainer.get_optimizer_cls_and_kwargs(args, model)


def _trainer(plan: Plan, loaded: Loaded) -> XGBLoRATrainer:
    model, objective, max_length = loaded.model, loaded.measurement.objective, loaded.measurement.max_length
    with in_one_line(ValueError, ImportError):
        adapters = trainable_of(model, plan.args)
        adapters.labels = loaded.labels
        adapters.known_rest = base_identity.kept(plan.folder.base, base_identity.facts_of(model, adapters))
        return XGBLoRATrainer(
            model,
            plan.args,
            adapters=adapters,
            objective=objective.objective,
            train_dataset=loaded.train,
            eval_dataset=loaded.dev or None,
            data_collator=objective.collate,
            # of a generated answer the loss alone is known
            compute_metrics=None if plan.chosen.generation else _compute_metrics,
            identity={
                **identity_of_task(plan.task, seed=plan.sampling_seed, max_length=max_length),
                **identity_of_examples(loaded.train, loaded.dev),
            },
        )


def _compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}
