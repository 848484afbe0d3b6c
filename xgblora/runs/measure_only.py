"""`measure_only`, a run that trains nothing (`--trainer none`): the model as it is, without adapters, is measured."""

import time
from contextlib import ExitStack

from xgblora.environment import peak_memory, versions
from xgblora.errors import InputError
from xgblora.runs import report
from xgblora.runs.console import log_block, logging_to, remembering_log
from xgblora.runs.plan import Plan, plan
from xgblora.runs.prepare import Loaded, load
from xgblora.spelling import memory_size
from xgblora.training import processes
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.task_flags import TaskArguments


def measure_only(task: TaskArguments, args: XGBLoRAArguments) -> dict:
    """Measure the model that the flags name; of several processes the first one does.

    Everything that a person can get wrong is checked before anything is written.

    Returns:
        What `metrics.json` holds; nothing with `task.dry_run`, and in a process that does not write.

    Raises:
        InputError: a flag, a file or the data is wrong.
    """
    started = time.perf_counter()
    with remembering_log() as early, ExitStack() as held:
        with processes.refusing_together():
            _refuse_checkpoint(args)
            planned = plan(task, args, held)
            loaded = load(planned)
        if not processes.writes(planned.args):
            return {}
        if task.dry_run:
            _log_configuration(planned, loaded)
            rows = [("Memory of the base weights", memory_size(loaded.model.get_memory_footprint()))]
            log_block("dry run: nothing was written", rows)
            return {}
        if task.overwrite:
            planned.folder.clear(keep_up_to=0)
        with logging_to(planned.folder.log, early):
            _log_configuration(planned, loaded)
            return _measure(planned, loaded, started)


def _refuse_checkpoint(args: XGBLoRAArguments) -> None:
    """Before the folder is looked at: what is written there would pass for the end of a run that was killed."""
    resumed = args.resume_from_checkpoint
    if resumed:
        raise InputError(
            f"resume_from_checkpoint={resumed}: trainer=none measures the base model; make a model of the checkpoint "
            "by xgblora-export, and give that as --model_name"
        )


def _log_configuration(planned: Plan, loaded: Loaded) -> None:
    report.log_measurement(planned.task, planned.args, loaded.model, loaded.measurement.sets, planned.folder)


def _measure(planned: Plan, loaded: Loaded, started: float) -> dict:
    measured, answers = loaded.measurement.of(loaded.model)
    answers.write(planned.folder.predictions)
    metrics = {
        "configuration": report.configuration(planned.task, planned.args),
        "environment": versions(),
        "results": {"zero_shot": measured},
        "seconds": time.perf_counter() - started,
        "peak_memory_bytes": peak_memory(planned.args.device),
    }
    planned.folder.write_metrics(metrics)
    report.log_results(metrics, loaded.measurement.task.metrics[0], planned.folder, None)
    return metrics
