"""What a run by rewards says and shows: its configuration, its steps, its results and its figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xgblora.population import Told
from xgblora.records.reward_files import read_steps
from xgblora.records.run_folder import RunFolder, entries_of
from xgblora.runs import reward_figure
from xgblora.runs.console import log_block, logger
from xgblora.runs.report import method_name, rate_and_schedule, rows_of_device_map, rows_of_population
from xgblora.runs.reward_plan import RewardPlan
from xgblora.spelling import dtype_name, one_line
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.evolution import Evolution, Judged, Step, mean_of
from xgblora.training.task_flags import TaskArguments


def log_configuration(plan: RewardPlan, evolution: Evolution, steps: int) -> None:
    """Log the block that says what will run."""
    task, args, adapters = plan.task, plan.args, evolution.booster.adapters
    for line in args.idle_flags:
        logger.warning(line)
    sampling = evolution.sampling
    how = f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}" if sampling.temperature else "greedy"
    log_block(
        "xgblora",
        [
            ("Model", f"{task.model_name} ({dtype_name(adapters.compute_dtype)}, {args.device})"),
            *rows_of_device_map(task, adapters.model),
            ("Prompts", f"{len(plan.rows)} from {args.prompts}, {len(plan.held_out)} held out"),
            ("Rewards", ", ".join(f"{reward.weight:g} x {reward.name}" for reward in plan.rewards)),
            ("A reward that fails", f"{args.on_failure}; time limit {args.reward_time_limit:g} s"),
            ("Method", method_name(args)),
            ("Merge rule in force", args.merge_policy),
            *rows_of_population(args, evolution.block),
            ("Learning rate", rate_and_schedule(args)),
            ("Texts a step", f"{args.prompts_per_step} prompts x {sampling.completions} x {args.members} members"),
            ("Sampling", f"{how}, at most {sampling.max_new_tokens} tokens"),
            ("Adapted layers", len(adapters.layers)),
            ("Steps", steps),
            ("Seed", args.seed),
            ("Output", plan.place.folder.path),
        ],
    )


def log_step(number: int, step: Step, rewards: Mapping[str, float], truncated: float) -> None:
    """Log what a step came to; several rewards one by one."""
    told = step.told
    each = ", ".join(f"{name} {value:.4f}" for name, value in rewards.items()) if len(rewards) > 1 else ""
    logger.info(
        "step %d: reward mean %.4f, best %.4f, %d failed, %.0f%% of texts truncated%s",
        number,
        told.mean,
        told.best,
        told.failed,
        100 * truncated,
        f" ({each})" if each else "",
    )


def about_texts(judged: Sequence[Judged]) -> dict:
    """What texts are worth together: the mean of those that did not fail, each reward by its name, and the counts."""
    names = judged[0].scored.rewards
    return {
        "examples": len(judged),
        "reward": mean_of([one.scored.value for one in judged]),
        "rewards": {name: mean_of([one.scored.rewards[name] for one in judged]) for name in names},
        "failed": sum(bool(one.scored.failures) for one in judged),
        "truncated": sum(one.completion.truncated for one in judged),
    }


def scalars_of_step(told: Told, rewards: Mapping[str, float], truncated: float) -> dict[str, float]:
    """What `--report_to` gets of a step: the reward, each one where there are several, and what the step went by."""
    return {
        "reward": told.mean,
        "reward_best": told.best,
        **_one_by_one(rewards),
        "failed": told.failed,
        "truncated": truncated,
        "sigma": told.sigma,
        "learning_rate": told.lr,
    }


def scalars_of_texts(about: Mapping[str, Any]) -> dict[str, float]:
    """What `--report_to` gets of held-out texts, of which `about_texts` says `about`."""
    return {"reward": about["reward"], **_one_by_one(about["rewards"])}


def _one_by_one(rewards: Mapping[str, float]) -> dict[str, float]:
    return {f"reward/{name}": value for name, value in rewards.items()} if len(rewards) > 1 else {}


def log_results(metrics: dict, folder: RunFolder, *, saved: bool) -> None:
    """Log what was gained, and where everything is."""
    before, after = (metrics["results"][name]["eval"] for name in ("zero_shot", "trained"))
    training = metrics["training"]
    logger.info("")
    if before:
        logger.info("held-out reward: %.4f before, %.4f after", before["reward"], after["reward"])
    logger.info(
        "%d steps in %.1f s (%.2f steps/s), %d boosters",
        training["steps"],
        training["seconds"],
        training["steps_per_second"],
        training["boosters"],
    )
    logger.info("curve:   %s", folder.reward_figure)
    logger.info("metrics: %s", folder.metrics)
    if saved:
        logger.info("model:   %s", folder.model)


def draw(folder: RunFolder, task: TaskArguments, args: XGBLoRAArguments) -> None:
    """Draw the figure; one that cannot be drawn is logged, since all that was learnt is there without it."""
    try:
        reward_figure.draw(
            folder.reward_figure,
            title=f"{Path(task.model_name).name} on {Path(args.prompts).name}: evolution, seed {args.seed}",
            steps=read_steps(folder.step_reward),
            held_out=[(entry["step"], entry["reward"]) for entry in entries_of(folder.eval_reward)],
        )
    except Exception as error:  # what a library of figures can raise is anybody's guess
        logger.warning("no figure: it could not be drawn (%s)", one_line(error, kind=True, limit=200))
