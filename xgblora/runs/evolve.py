"""`evolve`, a whole run by rewards (`--trainer population`): from flags to a folder with curve, metrics and model.

transformers' trainer has no place in it: there are no batches with labels, no loss, no optimizer. The loop is here, and
folder, checkpoints and files are those of every run.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from transformers.trainer_utils import rotate_checkpoints

from xgblora.atomic_file import replacing_folder
from xgblora.boosting.export import export_merged
from xgblora.boosting.finish import finish
from xgblora.environment import peak_memory, versions
from xgblora.records import base_identity, checkpoint
from xgblora.records.reward_files import RewardFiles
from xgblora.rewards import RewardPool
from xgblora.rewards.prompts import Prompt
from xgblora.runs import report, reward_report
from xgblora.runs.console import logger, logging_to, remembering_log
from xgblora.runs.language_model import load_model, longest_text
from xgblora.runs.place import in_place
from xgblora.runs.reward_plan import RewardPlan, plan_rewards, read_prompts
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.evolution import Evolution, Judged, Step, mean_of
from xgblora.training.from_flags import booster_of, trainable_of
from xgblora.training.progress import ShowRewards
from xgblora.training.report_rewards import ReportRewards
from xgblora.training.run_identity import identity_of_flags, identity_of_prompts, identity_of_rewards
from xgblora.training.task_flags import TaskArguments

# of each entry in the log and each evaluation so many completions are kept
_SAMPLES = 4


def evolve(task: TaskArguments, args: XGBLoRAArguments) -> dict:
    """Run what the flags say.

    Everything that a person can get wrong is checked before anything is written.

    Returns:
        What `metrics.json` holds; nothing with `task.dry_run`.

    Raises:
        InputError: a flag, a file or a reward is wrong, or one failed and that ends the run.
    """
    started = time.perf_counter()
    with remembering_log() as early, ExitStack() as held:
        planned = plan_rewards(task, args, held)
        limits = {"workers": args.reward_workers, "time_limit": args.reward_time_limit}
        with RewardPool(planned.rewards, **limits, on_failure=args.on_failure) as pool:
            run = _prepare(planned, pool)
            folder = planned.place.folder
            if task.dry_run:
                reward_report.log_configuration(planned, run.evolution, run.steps)
                return {}
            if task.overwrite:
                folder.clear(keep_up_to=planned.place.first_step)
            with logging_to(folder.log, early):
                adapters = run.evolution.booster.adapters
                facts = base_identity.facts_of(adapters.model, adapters)
                base_identity.keep(folder.base, facts, adapters.origin.rest)
                reward_report.log_configuration(planned, run.evolution, run.steps)
                return _leave_results(run, _train_and_measure(run), started)


@dataclass(frozen=True)
class PreparedEvolution:
    """A run of which everything was checked.

    Attributes:
        plan: what the flags decide.
        evolution: the model and what it learns by.
        held_out: prompts to evaluate.
        identity: what decides the run, for its checkpoints.
    """

    plan: RewardPlan
    evolution: Evolution
    held_out: list[Prompt]
    identity: dict

    @property
    def steps(self) -> int:
        """At which the run ends."""
        return self.evolution.steps


@dataclass(frozen=True)
class _Outcome:
    """What a run brought: what was measured before and after, seconds of training, and its own steps."""

    results: dict[str, dict]
    seconds: float
    steps_taken: int


def _prepare(planned: RewardPlan, pool: RewardPool) -> PreparedEvolution:
    """Load the model, and make what learns; nothing is written."""
    task, args = planned.task, in_place(planned.args, planned.task, planned.place)
    model, tokenizer = load_model(
        task.model_name,
        dtype=task.dtype,
        device=args.device,
        device_map=task.device_map,
        trust_remote_code=task.trust_remote_code,
    )
    prompts, held_out = (read_prompts(rows, args, tokenizer) for rows in (planned.rows, planned.held_out))
    adapters = trainable_of(model, args)
    adapters.known_rest = base_identity.kept(planned.place.folder.base, base_identity.facts_of(model, adapters))
    lengths = {
        "max_length": longest_text(model, tokenizer, task.max_length),
        "max_new_tokens": task.max_new_tokens,
    }
    evolution = Evolution(model, tokenizer, booster_of(adapters, args), prompts, pool, args, **lengths)
    identity = {
        **identity_of_flags(args),
        **identity_of_prompts(prompts, **lengths),
        **identity_of_rewards(planned.rewards),
    }
    run = PreparedEvolution(replace(planned, args=args), evolution, held_out, identity)
    if args.resume_from_checkpoint:
        checkpoint.check(Path(args.resume_from_checkpoint), adapters.origin, identity, needed=())
    return run


def _train_and_measure(run: PreparedEvolution) -> _Outcome:
    args, evolution, place = run.plan.args, run.evolution, run.plan.place
    files = RewardFiles(place.folder, [reward.name for reward in run.plan.rewards], keep=place.first_step)
    reports = ReportRewards(args, evolution.model, evolution.tokenizer, steps=run.steps, first=place.first_step)
    before = _measured(run, files, reports, 0) if run.held_out else {}
    if args.resume_from_checkpoint:
        resumed = Path(args.resume_from_checkpoint)
        checkpoint.load(resumed, evolution.booster.adapters, evolution.booster)
        # steps that changed nothing are in no ledger
        evolution.population.step = checkpoint.verified_manifest(resumed)["step"]
    first, begun = evolution.population.step, time.perf_counter()
    trained, showing = before, ShowRewards(run.steps, first, shown=not args.disable_tqdm)
    while evolution.population.step < run.steps:
        step = evolution.step()
        number = step.told.step + 1
        showing.step(number, step.told.mean)
        _record(run, files, reports, number, step)
        if run.held_out and (number == run.steps or _due(args.eval_strategy, args.eval_steps, number)):
            trained = _measured(run, files, reports, number)
            showing.held_out(trained["reward"])
        if _due(args.save_strategy, args.save_steps, number, last=number == run.steps):
            files.sync()
            _save(run, number)
    showing.end(evolution.population.step)
    reports.end()
    seconds = time.perf_counter() - begun
    if run.held_out and first >= run.steps:
        trained = reward_report.about_texts(evolution.evaluate(run.held_out))
    return _Outcome({"zero_shot": {"eval": before}, "trained": {"eval": trained}}, seconds, run.steps - first)


def _record(run: PreparedEvolution, files: RewardFiles, reports: ReportRewards, number: int, step: Step) -> None:
    """Write what a step came to, and log and report it when that is due."""
    told, texts = step.told, step.texts
    rewards = {reward.name: mean_of([one.scored.rewards[reward.name] for one in texts]) for reward in run.plan.rewards}
    truncated = sum(one.completion.truncated for one in texts)
    files.add_step(number, told, truncated=truncated, rewards=rewards)
    if number % int(run.plan.args.logging_steps) and number != run.steps:
        return
    reward_report.log_step(number, step, rewards, truncated / len(texts))
    reports.step(number, reward_report.scalars_of_step(told, rewards, truncated / len(texts)))
    if told.best_member is not None:
        files.add_completions(number, f"member {told.best_member}", _samples(step.judged[told.best_member]))


def _measured(run: PreparedEvolution, files: RewardFiles, reports: ReportRewards, number: int) -> dict:
    """What the held-out prompts give now; written and reported unless a run that goes on has it already."""
    judged = run.evolution.evaluate(run.held_out)
    about = reward_report.about_texts(judged)
    if number > run.plan.place.first_step or not run.plan.place.first_step:
        files.add_evaluation({"step": number, **about})
        reports.held_out(number, reward_report.scalars_of_texts(about))
        files.add_completions(number, "held-out", _samples(judged))
        logger.info("step %d: held-out reward %.4f", number, about["reward"])
    return about


def _samples(judged: Sequence[Judged]) -> list[dict]:
    return [one.to_json() for one in judged[:_SAMPLES]]


def _save(run: PreparedEvolution, number: int) -> None:
    """A checkpoint: the ledger, and which run it is of. All else follows from the flags and the step."""
    path, booster = run.plan.place.folder.path, run.evolution.booster
    with replacing_folder(path / f"checkpoint-{number}") as staging:
        checkpoint.save(staging, booster.adapters, booster)
        checkpoint.seal(staging, booster.adapters.origin, step=number, epoch=0.0, run=run.identity, unlogged={})
    rotate_checkpoints(output_dir=str(path), save_total_limit=run.plan.args.save_total_limit, use_mtime=False)


def _leave_results(run: PreparedEvolution, outcome: _Outcome, started: float) -> dict:
    """Write and log all that is known when a run has ended, `metrics.json` last; what that holds."""
    task, args, folder = run.plan.task, run.plan.args, run.plan.place.folder
    booster = run.evolution.booster
    boosters = len(booster.ledger)
    finish(booster.adapters, booster, step=run.steps, epoch=0.0)
    booster.save_ledger(folder.ledger, about=versions())
    if task.save_model:
        export_merged(run.evolution.model, folder.model, tokenizer=run.evolution.tokenizer)
    reward_report.draw(folder, task, args)
    metrics = {
        "configuration": report.configuration(task, args),
        "environment": versions(),
        "results": outcome.results,
        "training": {
            "steps": run.steps,
            "seconds": outcome.seconds,
            "steps_per_second": outcome.steps_taken / outcome.seconds,
            "boosters": boosters,
            "trainable_parameters": booster.adapters.num_parameters(),
        },
        "seconds": time.perf_counter() - started,
        "peak_memory_bytes": peak_memory(args.device),
    }
    folder.write_metrics(metrics)
    reward_report.log_results(metrics, folder, saved=task.save_model)
    return metrics


def _due(strategy: object, often: float | None, number: int, *, last: bool = False) -> bool:
    by_steps = getattr(strategy, "value", strategy) == "steps"
    return by_steps and bool(often) and (last or number % int(often) == 0)
