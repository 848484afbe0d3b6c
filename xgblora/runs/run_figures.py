"""The figures of a run, drawn from the files in its folder."""

import math
from pathlib import Path

from xgblora.records import step_losses
from xgblora.records.run_folder import RunFolder, entries_of
from xgblora.runs import loss_figure, rounds_figure
from xgblora.runs.report import method_name
from xgblora.training.task_flags import TaskArguments
from xgblora.training.trainer import XGBLoRATrainer


def draw(folder: RunFolder, task: TaskArguments, trainer: XGBLoRATrainer, zero_shot: dict) -> None:
    """Draw the loss by step, and for a run that evaluated its rounds the loss and accuracy by round.

    Args:
        folder: of the run, with its curve and its evaluations.
        task: the flags of model and task.
        trainer: after training.
        zero_shot: the measurements of the base model.
    """
    steps, losses = step_losses.read(folder.step_loss)
    evaluations, merges = (entries_of(path) for path in (folder.eval_loss, folder.merges))
    args = trainer.args
    title = f"{Path(task.model_name).name} on {task.task_name}: {method_name(args)}, seed {args.seed}"
    loss_figure.draw(
        folder.figure,
        title=title,
        steps=steps,
        losses=losses,
        # a mark at every step marks nothing
        merges=[entry["step"] for entry in merges] if args.has_rounds else [],
        held_out=[(entry["step"], entry["eval_loss"]) for entry in evaluations],
    )
    if args.staged_eval and merges:
        # not from the file: that of a run that was resumed in another folder begins there
        history = {entry["step"]: entry for entry in trainer.state.log_history if "eval_loss" in entry}
        # rounds before a resumption that brought the flag were not measured, and leave a gap
        rounds = [history.get(entry["kept_step"], {}) for entry in merges]
        rounds_figure.draw(
            folder.rounds_figure,
            title=title,
            losses=[zero_shot["dev"]["loss"], *(entry.get("eval_loss", math.nan) for entry in rounds)],
            accuracies=[
                entry.get(name, math.nan)
                for name, entry in (("accuracy", zero_shot["dev"]), *(("eval_accuracy", entry) for entry in rounds))
            ],
            kept=trainer.best_round,
        )
