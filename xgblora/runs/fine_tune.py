"""`fine_tune`, the last stage of a run: train, measure, and leave the curve, the metrics and the model."""

import time

from transformers import PreTrainedTokenizerBase

from xgblora.boosting.export import export_merged, finish, takes_its_boosters
from xgblora.boosting.peft_adapter import export_peft
from xgblora.environment import peak_memory, versions
from xgblora.errors import in_one_line
from xgblora.records.run_folder import RunFolder, entries_of
from xgblora.runs import report, run_figures
from xgblora.runs.console import logging_to, remembering_log
from xgblora.runs.plan import plan
from xgblora.runs.prepare import PreparedRun, prepare
from xgblora.training.arguments import TaskArguments, XGBLoRAArguments
from xgblora.training.trainer import XGBLoRATrainer


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
        run = prepare(plan(task, args))
        folder = run.plan.folder
        if task.overwrite:
            folder.clear(keep_up_to=run.plan.first_step)
        with logging_to(folder.log, early):
            return _carry_out(run, started)


def _carry_out(run: PreparedRun, started: float) -> dict:
    task, args, folder = run.plan.task, run.plan.args, run.plan.folder
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
