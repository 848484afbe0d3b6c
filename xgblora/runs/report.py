"""What a run says: the block of its configuration before anything runs, and the table of its results at the end."""

import torch
from torch import nn
from transformers import PreTrainedModel

from xgblora.adapters import AdapterSet, FullParameters
from xgblora.objectives.of_task import OBJECTIVES
from xgblora.records.run_folder import RunFolder
from xgblora.runs.console import log_block, log_table, logger
from xgblora.runs.device_map import placement
from xgblora.spelling import dtype_name, memory_size, number_of
from xgblora.tasks import SampledSets
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.processes import shares_examples
from xgblora.training.recipes import RECIPES
from xgblora.training.task_flags import TaskArguments
from xgblora.training.trainer import XGBLoRATrainer


def method_name(args: XGBLoRAArguments) -> str:
    """The method as a person says it: "XGBLoRA, zeroth-order"."""
    if args.full and args.trainer == "zo":
        return "full parameters, zeroth-order (MeZO)"
    if args.trainer == "population":
        return "evolution, rank-1 perturbations of the weights"
    adapters = "XGBLoRA" if args.boosts else f"LoRA r={args.rank}"
    how = {"zo": "zeroth-order", "regular": "first-order (AdamW)"}[args.trainer]
    return f"{adapters}, {how}"


def log_configuration(
    task: TaskArguments, args: XGBLoRAArguments, trainer: XGBLoRATrainer, sets: SampledSets, folder: RunFolder
) -> None:
    """Log the block that says what will run; its lines are part of the interface."""
    if args.boosts and args.lora_r != 1:
        logger.warning("--lora_r %d: XGBLoRA always uses rank 1; using 1", args.lora_r)
    if args.boosts and args.lora_init != "kaiming":
        logger.warning("--lora_init %s: XGBLoRA's rounds start by --xgblora_reinit", args.lora_init)
    for line in args.idle_flags:
        logger.warning(line)
    adapters = trainer.adapters
    weights = adapters.compute_dtype
    rows = [*_rows_of_task(task, args, adapters.model, weights, sets), ("Method", method_name(args))]
    if task.recipe and not args.full:
        about = "its layers" if args.trainer == "population" else RECIPES[task.recipe].about
        rows.append(("Recipe", f"{task.recipe}: {about}"))
    rows += _rows_of_full_parameters(adapters) if args.full else _rows_of_adapters(args, adapters)
    if args.has_rounds:
        rows += _rows_of_rounds(args, trainer)
    if args.trainer == "population":
        rows += [("Merge rule in force", args.merge_policy), *rows_of_population(args)]
    if args.boosts and weights != torch.float32:
        where = ", on the host" if (args.rounding, args.remainders) == ("remainder", "host") else ""
        rows.append(("Rounding of merges", args.rounding + where))
    if args.trainer == "zo":
        rows.append(("Zeroth order", estimate_and_rule(args)))
    if trainer.trunk is not None:
        rows.append(("Hidden states remembered", trainer.trunk))
    rows += [
        ("Learning rate", rate_and_schedule(args)),
        ("Batch size", _batch_size(args)),
        ("Loss", OBJECTIVES[task.objective]),
        ("Seed", args.seed),
    ]
    log_block("xgblora", [*rows, ("Output", folder.path)])


def rows_of_device_map(task: TaskArguments, model: nn.Module) -> list[tuple[str, str]]:
    """Where `--device_map` has put the model."""
    return [] if task.device_map == "none" else [("Device map", f"{task.device_map}: {placement(model)}")]


def log_measurement(
    task: TaskArguments, args: XGBLoRAArguments, model: PreTrainedModel, sets: SampledSets, folder: RunFolder
) -> None:
    """Log the block that says what will be measured by a run that trains nothing."""
    for line in args.idle_flags:
        logger.warning(line)
    shots = number_of(task.num_demos, "demonstration") if task.num_demos else "zero-shot"
    rows = [
        *_rows_of_task(task, args, model, model.dtype, sets),
        ("Method", f"evaluation of the model as it is, {shots}"),
        ("Loss", OBJECTIVES[task.objective]),
        ("Seed", args.seed),
        ("Output", folder.path),
    ]
    log_block("xgblora", rows)


def _rows_of_task(
    task: TaskArguments, args: XGBLoRAArguments, model: nn.Module, weights: torch.dtype, sets: SampledSets
) -> list[tuple[str, object]]:
    data = task.data_dir or task.task_file or "the hub"
    counts = f"{len(sets.train)} train, {len(sets.dev)} dev, {len(sets.evaluation)} held-out examples"
    return [
        ("Model", f"{task.model_name} ({dtype_name(weights)}, {args.device})"),
        *rows_of_device_map(task, model),
        ("Task", f"{task.task_name} from {data}: {counts}"),
    ]


def _rows_of_adapters(args: XGBLoRAArguments, adapters: AdapterSet) -> list[tuple[str, object]]:
    forced = " (forced to 1 for XGBLoRA)" if args.boosts else ""
    return [
        ("Actual rank used", f"{args.rank}{forced}"),
        ("Alpha", args.lora_alpha),
        ("Scaling (alpha/r)", args.scaling),
        ("Adapted layers", f"{len(adapters.layers)}, {adapters.num_parameters():,} trainable parameters"),
    ]


def _rows_of_full_parameters(full: FullParameters) -> list[tuple[str, object]]:
    weights, master = (memory_size(part.nbytes, "MiB") for part in (full.arena.live, full.arena.master))
    return [
        ("Trainable parameters", f"{full.num_parameters():,}, {len(full.parameters)} tensors"),
        ("Memory", f"{weights} of weights, {master} of fp32 master beside them (restores exactly)"),
    ]


def _rows_of_rounds(args: XGBLoRAArguments, trainer: XGBLoRATrainer) -> list[tuple[str, object]]:
    layers = len(trainer.adapters.layers)
    rows = [
        ("Steps per iteration", args.xgblora_steps_per_iteration),
        ("Merge frequency (epochs)", args.xgblora_merge_frequency),
        ("Merge rule in force", args.merge_policy),
        ("Reinitialisation", args.xgblora_reinit),
        ("Shrinkage", args.shrinkage),
        ("Layers a round trains (colsample)", f"{trainer.booster.start.count(layers)} of {layers}"),
    ]
    if trainer.hard is not None:
        rows.append(("Hard examples", trainer.hard))
    if args.early_stopping_rounds:
        rows.append(("Early stopping", f"after {args.early_stopping_rounds} round(s) without a better one"))
    return rows


def rows_of_population(args: XGBLoRAArguments, at_a_time: int | None = None) -> list[tuple[str, object]]:
    """What the block says of members; `at_a_time` is how many run together, where not all do."""
    pairs = ", in pairs" if args.pairs else ""
    blocks = f", {at_a_time} at a time" if at_a_time is not None and at_a_time < args.members else ""
    sigma = f"{args.sigma:g}" if args.sigma_end is None else f"{args.sigma:g} to {args.sigma_end:g}"
    return [
        ("Members", f"{args.members}{pairs}{blocks}, sigma {sigma}"),
        ("Shaping", args.shaping),
        ("Decay", f"{args.decay:g}"),
    ]


def rate_and_schedule(args: XGBLoRAArguments) -> str:
    """The learning rate and what it follows."""
    return f"{args.learning_rate:g} ({getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)})"


def _batch_size(args: XGBLoRAArguments) -> int | str:
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if args.world_size == 1:
        return size
    if shares_examples(args):
        return f"{size * args.world_size}, {size} in each of {args.world_size} processes"
    return f"{size}, the same in {args.world_size} processes; each has other {args.zo_parallel}"


def estimate_and_rule(args: XGBLoRAArguments) -> str:
    """The zeroth-order estimate and what steps along it; two-sided, Gaussian and SGD go without saying."""
    parts = [f"eps {args.zo_eps:g}", f"{args.estimator.directions} direction(s)", f"pairing {args.zo_pairing}"]
    if args.estimator.name != "two_sided":
        parts.append(args.estimator.name.replace("_", "-"))
    if args.zo_normalise:
        parts.append("normalised by the deviation of the losses (FZOO)")
    if args.zo_distribution != "gaussian":
        parts.append(args.zo_distribution)
    if args.zo_optimizer != "sgd":
        said = ", ".join(f"{name} {getattr(args, flag):g}" for flag, name in args.flags_of_optimizer.items())
        parts.append(f"{args.zo_optimizer} ({said})" if said else args.zo_optimizer)
    return ", ".join(parts)


def about_step(trainer: XGBLoRATrainer) -> dict[str, object] | None:
    """For `metrics.json`: how often a step runs a batch (`forwards`), and by what; None with backpropagation."""
    if trainer.args.trainer == "population":
        args = trainer.args
        flags = {name: getattr(args, name) for name in ("members", "sigma", "sigma_end", "learning_rate")}
        return {"name": "population", "forwards": trainer.zo.forwards, **flags}
    if trainer.zo is None:
        return None
    estimator = trainer.zo.estimator
    return {"name": estimator.name, "directions": estimator.directions, "forwards": estimator.forwards}


def log_results(metrics: dict, metric: str, folder: RunFolder, saved: str | None) -> None:
    """Log the table of results, and where everything is; `saved` is the line for the model."""
    results, shots = metrics["results"], metrics["configuration"]["num_demos"]
    logger.info("")
    header, rows = ("", "examples", f"{shots or 'zero'}-shot"), []
    trained = results.get("trained", {})
    if trained:
        header += ("trained", "gain")
    for name, title in (("dev", "development set"), ("eval", "held-out set")):
        before = results["zero_shot"].get(name)
        if before is None:
            continue
        row = (f"{metric}, {title}", str(before["examples"]), f"{100 * before[metric]:.1f}%")
        if trained:
            gain = trained[name][metric] - before[metric]
            row += (f"{100 * trained[name][metric]:.1f}%", f"{100 * gain:+.1f}")
        rows.append(row)
    log_table(header, rows)
    logger.info("")
    if trained:
        training = metrics["training"]
        logger.info(
            "%s in %.1f s (%.1f steps/s), %s, %d skipped",
            number_of(training["steps"], "step"),
            training["seconds"],
            training["steps_per_second"],
            number_of(training["merges"], "merge"),
            training["skipped_steps"],
        )
        logger.info("curve:   %s", folder.figure)
    logger.info("metrics: %s", folder.metrics)
    if saved:
        logger.info(saved)


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
        "rank": None if args.full else args.rank,
        "alpha": None if args.full else args.lora_alpha,
        "scaling": None if args.full else args.scaling,
        "merge_rule": str(args.merge_policy),
    }
