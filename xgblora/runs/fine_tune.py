"""`fine_tune`, the last stage of a run: train, measure, and leave the curve, the metrics and the model."""

import time
from contextlib import ExitStack
from dataclasses import dataclass

from xgblora.boosting import MergeOverflow
from xgblora.boosting.export import export_merged
from xgblora.boosting.finish import finish, takes_its_boosters
from xgblora.boosting.peft_adapter import export_peft
from xgblora.environment import peak_memory, versions
from xgblora.errors import in_one_line
from xgblora.evaluation import Evaluation
from xgblora.records import base_identity
from xgblora.records.run_folder import entries_of
from xgblora.runs import report, run_figures
from xgblora.runs.console import logger, logging_to, remembering_log
from xgblora.runs.head import whole_head
from xgblora.runs.plan import plan
from xgblora.runs.prepare import PreparedRun, prepare
from xgblora.scoring.forms import form_of
from xgblora.spelling import one_line
from xgblora.training import processes
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.task_flags import TaskArguments


def fine_tune(task: TaskArguments, args: XGBLoRAArguments) -> dict:
    """Run what the flags say.

    Everything that a person can get wrong is checked before anything is written.

    Returns:
        What `metrics.json` holds; nothing in a process that does not write, see `xgblora.training.processes`.

    Raises:
        InputError: a flag, a file or the data is wrong.
    """
    started = time.perf_counter()
    with remembering_log() as early, ExitStack() as held:
        with processes.refusing_together():
            run = prepare(plan(task, args, held))
        run.trainer.agree()
        if not processes.writes(run.plan.args):
            with run.trainer.noticing_losses():
                _train_and_measure(run)
                # until the first has written all
                run.trainer.agreed(None)
            return {}
        folder = run.plan.folder
        if task.overwrite:
            folder.clear(keep_up_to=run.plan.first_step)
        with logging_to(folder.log, early):
            _keep_base(run)
            report.log_configuration(run.plan.task, run.plan.args, run.trainer, run.measurement.sets, folder)
            with run.trainer.noticing_losses():
                outcome = _train_and_measure(run)
            metrics = _leave_results(run, outcome, started)
            run.trainer.agreed(None)
            return metrics


def _keep_base(run: PreparedRun) -> None:
    adapters = run.trainer.adapters
    base_identity.keep(run.plan.folder.base, base_identity.facts_of(adapters.model, adapters), adapters.origin.rest)


@dataclass(frozen=True)
class Outcome:
    """What a run brought.

    Attributes:
        results: what was measured before ("zero_shot") and after training ("trained").
        answers: to the held-out examples in the end.
        seconds: of training.
    """

    results: dict[str, dict]
    answers: Evaluation
    seconds: float


def _train_and_measure(run: PreparedRun) -> Outcome:
    args, trainer, measurement = run.plan.args, run.trainer, run.measurement
    zero_shot, _ = measurement.of(trainer.model)
    begun = time.perf_counter()
    with in_one_line(ImportError):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.perf_counter() - begun
    trained, answers = measurement.of(trainer.model)
    return Outcome({"zero_shot": zero_shot, "trained": trained}, answers, seconds)


def _leave_results(run: PreparedRun, outcome: Outcome, started: float) -> dict:
    """Write and log all that is known when a run has ended, `metrics.json` last; what that holds."""
    task, args, folder = run.plan.task, run.plan.args, run.plan.folder
    metrics = {
        "configuration": report.configuration(task, args),
        "environment": versions(),
        "results": outcome.results,
    }
    metrics["training"] = _about_training(run, outcome.seconds)
    saved = _leave_weights(run, outcome.results["trained"].get("dev", {}).get("loss"))
    _draw(run, outcome.results["zero_shot"])
    outcome.answers.write(folder.predictions)
    metrics["seconds"] = time.perf_counter() - started
    metrics["peak_memory_bytes"] = peak_memory(args.device)
    folder.write_metrics(metrics)
    report.log_results(metrics, run.measurement.task.metrics[0], folder, saved)
    return metrics


def _draw(run: PreparedRun, zero_shot: dict) -> None:
    """Draw the figures; one that cannot be drawn is logged, since everything that was trained is there without it."""
    try:
        run_figures.draw(run.plan.folder, run.plan.task, run.trainer, zero_shot)
    except Exception as error:  # what a library of figures can raise is anybody's guess
        logger.warning("no figure: it could not be drawn (%s)", one_line(error, kind=True, limit=200))


def _about_training(run: PreparedRun, seconds: float) -> dict:
    trainer = run.trainer
    return {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": seconds,
        "steps_per_second": trainer.steps_taken / seconds,
        "merges": len(entries_of(run.plan.folder.merges)),
        "best_round": trainer.best_round,
        "skipped_steps": int(trainer.zo.skipped_steps) if trainer.zo else 0,
        "estimator": report.about_step(trainer),
        "trainable_parameters": trainer.adapters.num_parameters(),
    }


def _leave_weights(run: PreparedRun, held_out_loss: float | None) -> str | None:
    """Merge what is left, write ledger, tape and model; the line that says where the model is."""
    folder, trainer, state = run.plan.folder, run.trainer, run.trainer.state
    step, epoch = state.global_step, state.epoch
    fits = True
    try:
        finish(trainer.adapters, trainer.booster, step=step, epoch=epoch, held_out_loss=held_out_loss)
    except MergeOverflow as error:
        logger.warning("XGBLoRA: %s; it leaves as a booster beside the weights", error)
        trainer.booster.enter_unmerged(step=step, epoch=epoch)
        fits = False
    trainer.booster.save_ledger(folder.ledger, about=versions())
    if trainer.tape is not None:
        trainer.tape.save(folder.tape)
    if not run.plan.task.save_model:
        return None
    if fits and takes_its_boosters(trainer.adapters):
        export_merged(trainer.model, folder.model, tokenizer=run.measurement.tokenizer)
        return f"model:   {folder.model}"
    # a model that is quantised, or whose last merge would overflow, cannot be saved with its boosters in it
    if not len(trainer.booster.ledger):
        return None
    export_peft(
        trainer.booster.ledger,
        folder.adapter,
        base_model=trainer.model,
        task_type=form_of(trainer.model).peft_task,
        whole=whole_head(trainer.model),
    )
    return f"adapter: {folder.adapter} (for PEFT: the weights themselves cannot be written)"
