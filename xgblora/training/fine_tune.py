"""`fine_tune`: a whole run, from flags to a folder with the curve, the metrics and the model."""

import csv
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import EvalPrediction

from xgblora.boosting.export import export_merged, finish
from xgblora.environment import versions
from xgblora.errors import InputError
from xgblora.evaluation.accuracy import candidate_accuracy
from xgblora.tasks import Collator, EncodedExample, Sample, encode, load_task, sample_sets
from xgblora.training import loss_figure
from xgblora.training.arguments import TaskArguments, XGBLoRAArguments
from xgblora.training.console import log_block, log_table, logger, logging_to
from xgblora.training.language_model import load_model, longest_text, refuse_missing_folder
from xgblora.training.objective import CandidateObjective
from xgblora.training.run_folder import RunFolder, unused_folder
from xgblora.training.trainer import XGBLoRATrainer


@dataclass(frozen=True)
class EncodedSets:
    """The examples of a run in token ids."""

    train: list[EncodedExample]
    dev: list[EncodedExample]
    evaluation: list[EncodedExample]


def fine_tune(task: TaskArguments, args: XGBLoRAArguments) -> dict:
    """Run what the flags say.

    Everything that a person can get wrong is checked before anything is written.

    Returns:
        What `metrics.json` holds.

    Raises:
        InputError: a flag, a file or the data is wrong.
    """
    started = time.perf_counter()
    if task.model_name is None:
        raise InputError("model_name is missing: give a model folder or a hub name")
    refuse_missing_folder(task.model_name)
    folder = _choose_folder(task, args)
    args.output_dir = str(folder.path)
    set_seed(args.seed)
    sets = sample_sets(
        load_task(task.task_name, task.data_dir),
        num_train=task.num_train,
        num_dev=task.num_dev,
        num_eval=task.num_eval,
        seed=args.seed if task.train_set_seed is None else task.train_set_seed,
    )
    model, tokenizer = load_model(task.model_name, dtype=task.dtype, device=args.device)
    length = longest_text(model, tokenizer, task.max_length)
    train = _encode(sets.train, tokenizer, length, only_right=not task.train_as_classification)
    # sorted by length, so that a batch of the evaluation has little padding
    dev, evaluation = (sorted(_encode(samples, tokenizer, length), key=len) for samples in (sets.dev, sets.evaluation))
    encoded = EncodedSets(train, dev, evaluation)
    if not encoded.dev:
        args.eval_strategy = "no"
    trainer = XGBLoRATrainer(
        model,
        args,
        objective=CandidateObjective(model, classification=task.train_as_classification),
        train_dataset=encoded.train,
        eval_dataset=encoded.dev or None,
        data_collator=Collator(tokenizer.pad_token_id),
        compute_metrics=_compute_metrics,
    )
    if task.overwrite and not args.resume_from_checkpoint:
        folder.clear()
    with logging_to(folder.log):
        return _run(task, args, folder, trainer, encoded, tokenizer, started)


def _run(
    task: TaskArguments,
    args: XGBLoRAArguments,
    folder: RunFolder,
    trainer: XGBLoRATrainer,
    encoded: EncodedSets,
    tokenizer: PreTrainedTokenizerBase,
    started: float,
) -> dict:
    log_configuration(task, args, trainer, encoded, folder)
    results = {"zero_shot": _measure(trainer, encoded, "zero_shot")}
    metrics = {
        "configuration": configuration(task, args),
        "environment": versions(),
        "results": results,
    }
    if args.trainer != "none":
        begun = time.perf_counter()
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        seconds = time.perf_counter() - begun
        metrics["training"] = {
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "seconds": seconds,
            "steps_per_second": trainer.steps_taken / seconds,
            "merges": len(trainer.booster.ledger) if trainer.booster else 0,
            "skipped_steps": int(trainer.zo.skipped_steps) if trainer.zo else 0,
            "trainable_parameters": trainer.adapters.num_parameters(),
        }
        results["trained"] = _measure(trainer, encoded, "trained")
        _leave_results(task, folder, trainer, tokenizer)
    metrics["seconds"] = time.perf_counter() - started
    metrics["peak_memory_bytes"] = peak_memory(args.device)
    folder.write_metrics(metrics)
    _log_results(metrics, folder, task)
    return metrics


def _choose_folder(task: TaskArguments, args: XGBLoRAArguments) -> RunFolder:
    if not args.names_its_folder:
        name = f"{Path(task.model_name).name}-{task.task_name}-{args.method}-{args.trainer}-seed{args.seed}"
        return RunFolder(unused_folder(Path("runs"), name))
    folder = RunFolder(Path(args.output_dir))
    if not task.overwrite and not args.resume_from_checkpoint:
        folder.refuse_if_used()
    return folder


def _encode(
    samples: list[Sample], tokenizer: PreTrainedTokenizerBase, max_length: int, *, only_right: bool = False
) -> list[EncodedExample]:
    return [encode(sample, tokenizer, max_length=max_length, only_right=only_right) for sample in samples]


def _compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": candidate_accuracy(prediction.predictions, prediction.label_ids)}


def _measure(trainer: XGBLoRATrainer, encoded: EncodedSets, when: str) -> dict:
    """Loss and accuracy on the development and held-out sets, as the model is now."""
    measured = {}
    for name, examples in (("dev", encoded.dev), ("eval", encoded.evaluation)):
        if examples:
            output = trainer.predict(examples, metric_key_prefix=f"{when}_{name}").metrics
            prefix = f"{when}_{name}_"
            measured[name] = {
                "accuracy": output[prefix + "accuracy"],
                "loss": output[prefix + "loss"],
                "examples": len(examples),
            }
    return measured


def _leave_results(
    task: TaskArguments, folder: RunFolder, trainer: XGBLoRATrainer, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write the figure, the ledger and the model."""
    _draw_losses(folder, task, trainer)
    finish(trainer.adapters, trainer.booster, step=trainer.state.global_step, epoch=trainer.state.epoch)
    if trainer.booster is not None:
        trainer.booster.ledger.save(folder.ledger, about={"model": task.model_name, **versions()})
    if task.save_model:
        export_merged(trainer.model, folder.model, tokenizer=tokenizer)


def _draw_losses(folder: RunFolder, task: TaskArguments, trainer: XGBLoRATrainer) -> None:
    with open(folder.step_loss, encoding="utf-8", newline="") as file:
        rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    steps, losses = np.array([step for step, _ in rows]), np.array([loss for _, loss in rows])
    evaluations = [json.loads(line) for line in folder.eval_loss.read_text(encoding="utf-8").splitlines()]
    args = trainer.args
    loss_figure.draw(
        folder.figure,
        title=f"{Path(task.model_name).name} on {task.task_name}: {method_name(args)}, seed {args.seed}",
        steps=steps,
        losses=losses,
        merges=[booster.step for booster in trainer.booster.ledger.boosters] if trainer.booster else [],
        held_out=[(entry["step"], entry["eval_loss"]) for entry in evaluations],
    )


def method_name(args: XGBLoRAArguments) -> str:
    """The method as a person says it: "XGBLoRA, zeroth-order"."""
    adapters = "XGBLoRA" if args.boosts else f"LoRA r={args.rank}"
    how = {"zo": "zeroth-order", "regular": "first-order (AdamW)", "none": "zero-shot"}[args.trainer]
    return how if args.trainer == "none" else f"{adapters}, {how}"


def log_configuration(
    task: TaskArguments, args: XGBLoRAArguments, trainer: XGBLoRATrainer, encoded: EncodedSets, folder: RunFolder
) -> None:
    """Log the block that says what will run; its lines are part of the interface."""
    if args.boosts and args.lora_r != 1:
        logger.warning("--lora_r %d: XGBLoRA always uses rank 1; using 1", args.lora_r)
    adapters, policy = trainer.adapters, args.merge_policy
    weights = adapters.compute_dtype
    rows = [
        ("Model", f"{task.model_name} ({str(weights).removeprefix('torch.')}, {args.device})"),
        (
            "Task",
            f"{task.task_name} from {task.data_dir or 'the hub'}: {len(encoded.train)} train, "
            f"{len(encoded.dev)} dev, {len(encoded.evaluation)} held-out examples",
        ),
        ("Method", method_name(args)),
    ]
    if args.trainer != "none":
        forced = " (forced to 1 for XGBLoRA)" if args.boosts else ""
        rows += [
            ("Actual rank used", f"{args.rank}{forced}"),
            ("Alpha", args.lora_alpha),
            ("Scaling (alpha/r)", args.scaling),
            ("Adapted layers", f"{len(adapters.layers)}, {adapters.num_parameters():,} trainable parameters"),
        ]
        if args.boosts:
            rows += [
                ("Steps per iteration", args.xgblora_steps_per_iteration),
                ("Merge frequency (epochs)", args.xgblora_merge_frequency),
                ("Merge rule in force", policy),
            ]
            if weights != torch.float32:
                rows.append(("Rounding of merges", args.rounding))
        if args.trainer == "zo":
            rows.append(
                ("Zeroth order", f"eps {args.zo_eps:g}, {args.zo_directions} direction(s), pairing {args.zo_pairing}")
            )
        loss = "cross-entropy over the candidates" if task.train_as_classification else "loss of the right option"
        rows += [
            (
                "Learning rate",
                f"{args.learning_rate:g} ({getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)})",
            ),
            ("Batch size", args.per_device_train_batch_size * args.gradient_accumulation_steps),
            ("Loss", loss),
            ("Seed", args.seed),
        ]
    log_block("xgblora", [*rows, ("Output", folder.path)])


def _log_results(metrics: dict, folder: RunFolder, task: TaskArguments) -> None:
    results = metrics["results"]
    logger.info("")
    header, rows = ("", "examples", "zero-shot"), []
    trained = results.get("trained", {})
    if trained:
        header += ("trained", "gain")
    for name, title in (("dev", "development set"), ("eval", "held-out set")):
        before = results["zero_shot"].get(name)
        if before is None:
            continue
        row = (f"accuracy, {title}", str(before["examples"]), f"{100 * before['accuracy']:.1f}%")
        if trained:
            gain = trained[name]["accuracy"] - before["accuracy"]
            row += (f"{100 * trained[name]['accuracy']:.1f}%", f"{100 * gain:+.1f}")
        rows.append(row)
    log_table(header, rows)
    logger.info("")
    if trained:
        training = metrics["training"]
        logger.info(
            "%d steps in %.1f s (%.1f steps/s), %d merges, %d skipped",
            training["steps"],
            training["seconds"],
            training["steps_per_second"],
            training["merges"],
            training["skipped_steps"],
        )
        logger.info("curve:   %s", folder.figure)
    logger.info("metrics: %s", folder.metrics)
    if trained and task.save_model:
        logger.info("model:   %s", folder.model)


def configuration(task: TaskArguments, args: XGBLoRAArguments) -> dict:
    """The resolved configuration: every flag of ours, and what follows from them."""
    training = {
        name: value
        for name, value in args.to_dict().items()
        if isinstance(value, (int, float, str, list, bool, type(None))) and "token" not in name
    }
    return {
        **vars(task),
        **training,
        "method": args.method,
        "rank": args.rank,
        "alpha": args.lora_alpha,
        "scaling": args.scaling,
        "merge_rule": str(args.merge_policy),
    }


def peak_memory(device: torch.device) -> int | None:
    """Bytes: of the GPU's allocator on a GPU, else the largest resident set of this process; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes if platform.system() == "Darwin" else 1024 * kibibytes
