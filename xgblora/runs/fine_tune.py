"""`fine_tune`: a whole run, from flags to a folder with the curve, the metrics and the model."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import EvalPrediction

from xgblora.boosting.export import export_merged
from xgblora.boosting.finish import finish, takes_its_boosters
from xgblora.boosting.peft_adapter import export_peft
from xgblora.environment import peak_memory, versions
from xgblora.errors import InputError, in_one_line
from xgblora.objectives.of_task import check_objective, prepare_objective
from xgblora.records import checkpoint
from xgblora.records.run_folder import RunFolder, entries_of, refuse_unwritable, unused_folder
from xgblora.runs import report, run_figures
from xgblora.runs.console import logger, logging_to, remembering_log
from xgblora.runs.language_model import load_model, longest_text, refuse_missing_folder
from xgblora.runs.measurement import Measurement, calibration_for, check_measurement, demonstrations_for
from xgblora.tasks import choose_task, sample_sets
from xgblora.training.arguments import TaskArguments, XGBLoRAArguments
from xgblora.training.flag import Needs, asked_for
from xgblora.training.run_identity import identity_of_examples, identity_of_task
from xgblora.training.trainer import XGBLoRATrainer


@dataclass(frozen=True)
class PreparedRun:
    """A run that everything was checked of, and that has written nothing.

    Attributes:
        task, args: the flags, resolved.
        folder: where it will write.
        trainer: with the model and its adapters.
        measurement: how the model is measured before and after training.
    """

    task: TaskArguments
    args: XGBLoRAArguments
    folder: RunFolder
    trainer: XGBLoRATrainer
    measurement: Measurement


def fine_tune(task: TaskArguments, args: XGBLoRAArguments) -> dict:
    """Run what the flags say.

    Everything that a person can get wrong is checked before anything is written.

    Returns:
        What `metrics.json` holds.

    Raises:
        InputError: a flag, a file or the data is wrong.
    """
    started = time.perf_counter()
    with remembering_log() as early:
        run = prepare(task, args)
        if task.overwrite:
            run.folder.clear(keep_up_to=_step_to_go_on_from(run.folder, args))
        with logging_to(run.folder.log, early):
            return _carry_out(run, started)


def prepare(task: TaskArguments, args: XGBLoRAArguments) -> PreparedRun:
    """Check the flags, load the data and the model, and make the trainer.

    With `task.dry_run` nothing at all is written; else the folder is made, and what a killed process left half done in
    a folder that is resumed is cleaned up.

    Raises:
        InputError: a flag, a file or the data is wrong.
    """
    if task.model_name is None:
        raise InputError("model_name is missing: give a model folder or a hub name")
    refuse_missing_folder(task.model_name)
    chosen = choose_task(task.task_name, task.task_file)
    check_objective(task.objective, chosen, args.trainer, task.num_demos)
    check_measurement(task, chosen, args.trainer)
    task = replace(task, task_name=chosen.name)
    folder = _choose_folder(task, args)
    # transformers' trainer makes its folder as it is made itself
    args.output_dir = tempfile.gettempdir() if task.dry_run else str(folder.path)
    set_seed(args.seed)
    seed = args.seed if task.train_set_seed is None else task.train_set_seed
    splits = chosen.load(task.data_dir)
    sets = sample_sets(
        splits,
        num_train=task.num_train,
        num_dev=task.num_dev,
        num_eval=task.num_eval,
        seed=seed,
    )
    demonstrations = demonstrations_for(task, splits, sets, seed)
    model, tokenizer = load_model(task.model_name, dtype=task.dtype, device=args.device)
    _refuse_missing_optimizer(args, model)
    length = longest_text(model, tokenizer, task.max_length)
    objective = prepare_objective(
        task.objective, chosen, model, tokenizer, max_length=length, max_new_tokens=task.max_new_tokens
    )
    train = [objective.to_train(sample) for sample in sets.train]
    # sorted by length, so that a batch of the evaluation has little padding
    dev = sorted((objective.to_measure(sample) for sample in sets.dev), key=len)
    if not dev:
        _refuse_what_needs_development_examples(task, args)
        args.eval_strategy = "no"
    measurement = Measurement(
        chosen,
        sets,
        tokenizer,
        objective,
        max_length=length,
        demonstrations=demonstrations,
        calibration=calibration_for(task),
        max_new_tokens=task.max_new_tokens,
    )
    measurement.check()
    with in_one_line(ValueError, ImportError):
        trainer = XGBLoRATrainer(
            model,
            args,
            objective=objective.objective,
            train_dataset=train,
            eval_dataset=dev or None,
            data_collator=objective.collate,
            # of a generated answer the loss alone is known
            compute_metrics=None if chosen.generation else _compute_metrics,
            identity={
                **identity_of_task(task, seed=seed, max_length=length),
                **identity_of_examples(train, dev),
            },
        )
    return PreparedRun(task, args, folder, trainer, measurement)


def _refuse_missing_optimizer(args: XGBLoRAArguments, model: nn.Module) -> None:
    """Now, and not when training begins: nothing is written yet, and many optimizers are packages of their own."""
    if args.trainer == "regular":
        with in_one_line(ValueError, ImportError, about=f"optim={args.optim.value}: "):
            XGBLoRATrainer.get_optimizer_cls_and_kwargs(args, model)


def _refuse_what_needs_development_examples(task: TaskArguments, args: XGBLoRAArguments) -> None:
    wanted = asked_for(args, Needs.DEVELOPMENT_EXAMPLES)
    if args.shrinkage.factor is None:
        wanted.append("xgblora_shrinkage=line_search")
    if wanted:
        raise InputError(f"num_dev={task.num_dev}: {wanted[0]} needs development examples")


def _carry_out(run: PreparedRun, started: float) -> dict:
    task, args, folder = run.task, run.args, run.folder
    trainer, measurement = run.trainer, run.measurement
    report.log_configuration(task, args, trainer, measurement.sets, folder)
    zero_shot, answers = measurement.of(trainer.model)
    results = {"zero_shot": zero_shot}
    metrics = {
        "configuration": report.configuration(task, args),
        "environment": versions(),
        "results": results,
    }
    saved = None
    if args.trainer != "none":
        begun = time.perf_counter()
        with in_one_line(ImportError):
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        seconds = time.perf_counter() - begun
        metrics["training"] = {
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "seconds": seconds,
            "steps_per_second": trainer.steps_taken / seconds,
            "merges": len(entries_of(folder.merges)),
            "best_round": trainer.best_round,
            "skipped_steps": int(trainer.zo.skipped_steps) if trainer.zo else 0,
            "estimator": report.about_estimator(trainer.zo.estimator) if trainer.zo else None,
            "trainable_parameters": trainer.adapters.num_parameters(),
        }
        results["trained"], answers = measurement.of(trainer.model)
        saved = _leave_results(task, folder, trainer, measurement.tokenizer, results)
    answers.write(folder.predictions)
    metrics["seconds"] = time.perf_counter() - started
    metrics["peak_memory_bytes"] = peak_memory(args.device)
    folder.write_metrics(metrics)
    report.log_results(metrics, measurement.task.metrics[0], folder, saved)
    return metrics


def _choose_folder(task: TaskArguments, args: XGBLoRAArguments) -> RunFolder:
    last = args.resume_from_checkpoint in ("last", "True", "true")
    if not args.names_its_folder:
        if last:
            raise InputError("resume_from_checkpoint=last: give --output_dir, the folder of the run that is to go on")
        name = f"{Path(task.model_name).name}-{task.task_name}-{args.method}-{args.trainer}-seed{args.seed}"
        folder = RunFolder(unused_folder(Path("runs"), name))
        refuse_unwritable(folder.path)
        return folder
    folder = RunFolder(Path(args.output_dir))
    refuse_unwritable(folder.path)
    if last:
        _go_on_from_last(folder, task, args)
    elif not task.overwrite:
        step = _step_to_go_on_from(folder, args)
        if step:
            checkpoint.refuse_newer(folder.path, step)
        else:
            folder.refuse_if_used()
    return folder


def _step_to_go_on_from(folder: RunFolder, args: XGBLoRAArguments) -> int:
    """The step of the checkpoint to resume from if it is one of `folder`; 0 for a run that is new there."""
    if not args.resume_from_checkpoint:
        return 0
    chosen = Path(args.resume_from_checkpoint)
    return checkpoint.step_of(chosen) if chosen.resolve().parent == folder.path.resolve() else 0


def _go_on_from_last(folder: RunFolder, task: TaskArguments, args: XGBLoRAArguments) -> None:
    """Turn `resume_from_checkpoint=last` into the newest whole checkpoint of `folder`, or into a new run."""
    if not task.dry_run:
        folder.remove_leftovers()
    whole, damaged = checkpoint.newest_whole(folder.path)
    for line in damaged:
        logger.warning("passed over %s", line)
    if whole is None and not task.overwrite:
        folder.refuse_if_finished()
    logger.info("resuming from %s", whole) if whole else logger.info("no whole checkpoint: starting from the beginning")
    args.resume_from_checkpoint = str(whole) if whole else None


def _compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}


def _leave_results(
    task: TaskArguments,
    folder: RunFolder,
    trainer: XGBLoRATrainer,
    tokenizer: PreTrainedTokenizerBase,
    results: dict,
) -> str | None:
    """Write the figures, the ledger, the end of the tape and the model; the line that says where the model is."""
    run_figures.draw(folder, task, trainer, results["zero_shot"])
    state = trainer.state
    held_out_loss = results["trained"]["dev"]["loss"] if "dev" in results["trained"] else None
    finish(trainer.adapters, trainer.booster, step=state.global_step, epoch=state.epoch, held_out_loss=held_out_loss)
    trainer.booster.save_ledger(folder.ledger, about=versions())
    if trainer.tape is not None:
        trainer.tape.save(folder.tape)
    if not task.save_model:
        return None
    if takes_its_boosters(trainer.adapters):
        export_merged(trainer.model, folder.model, tokenizer=tokenizer)
        return f"model:   {folder.model}"
    # a quantised model cannot be saved with its boosters in it
    if not len(trainer.booster.ledger):
        return None
    export_peft(trainer.booster.ledger, folder.adapter, base_model=trainer.model)
    return f"adapter: {folder.adapter} (for PEFT: the weights themselves cannot be written)"
