"""`xgblora-compare`: every method on every seed, one table, the figures, and one JSON with everything."""

import argparse
import contextlib
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from xgblora.atomic_file import write_text
from xgblora.cli import train
from xgblora.cli.exit import exits_with_one_line
from xgblora.cli.flags import FlagParser
from xgblora.comparison import figures, methods, processes, report, runs, sweep, table, web_page
from xgblora.comparison.budget import steps_of_population
from xgblora.comparison.methods import METHODS, SET_BY_THE_COMPARISON, SPELLINGS, Method
from xgblora.comparison.results import FinishedRun
from xgblora.comparison.runs import Ended, PlannedRun
from xgblora.errors import InputError
from xgblora.objectives.of_task import check_objective
from xgblora.process_group import process_number
from xgblora.records.one_writer import only_one
from xgblora.records.run_folder import RunFolder, refuse_unwritable
from xgblora.runs.measurement import check_measurement
from xgblora.runs.plan import check_run, task_of
from xgblora.runs.prepare import draw_samples
from xgblora.runs.report import configuration
from xgblora.spelling import number_of
from xgblora.tasks import Task
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.processes import refusing_together
from xgblora.training.task_flags import TaskArguments

DESCRIPTION = """Compare LoRA and XGBLoRA: run every method on every seed, on the same data and the same noise, one run
after the other, each a process of its own. What was stopped goes on where it was when the same command is given again.
All flags of xgblora-train are taken and go to every run. A first argument that ends in .yaml, .yml or .json is read for
flags; those on the command line win."""

RESULT, SUMMARY = "comparison.json", "summary.txt"


@dataclass
class CompareArguments:
    """What is compared, and where the result goes."""

    _argument_group_name = "comparison"

    methods: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Methods: {', '.join(METHODS)} and those of --variants. Without it all of them but mezo_full "
            "(full parameters) and population, whose learning rates are others: give them their own by --variants or "
            "--sweep."
        },
    )
    variants: str | None = field(
        default=None,
        metadata={"help": "YAML file of methods of your own, `name:` and below it `base: METHOD` and flags."},
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds that every method is run on."})
    sweep: list[str] | None = field(
        default=None,
        metadata={
            "help": "FLAG=VALUE,VALUE,... of one flag or more: every method is tried with all values, and reported "
            "with the one that is best on the development set."
        },
    )
    output_root: str | None = field(
        default=None, metadata={"help": "Folder of all runs and the result; runs/compare-<model>-<task> without it."}
    )
    loss_figure_path: str | None = field(
        default=None, metadata={"help": "Place of the figure of the losses; OUTPUT_ROOT/loss.png without it."}
    )
    figure_pdf: bool = field(default=False, metadata={"help": "Write every figure as PDF too."})
    skip_completed: bool = field(
        default=True,
        metadata={"help": "Keep what is finished in OUTPUT_ROOT and go on; false: run everything again."},
    )


@dataclass(frozen=True)
class Comparison:
    """A comparison, checked.

    Attributes:
        root: folder of everything.
        title: of the figures and the first line.
        planned: all runs, in order.
        seeds: of every method.
        args: the flags of the comparison.
        dry_run: whether the runs are only listed.
    """

    root: Path
    title: str
    planned: list[PlannedRun]
    seeds: list[int]
    args: CompareArguments
    dry_run: bool

    @property
    def loss_figure(self) -> Path:
        """Place of the figure of the losses."""
        return Path(self.args.loss_figure_path or self.root / "loss.png")


@exits_with_one_line
def main(arguments: list[str] | None = None) -> None:
    """Entry point; `arguments` defaults to those of the command line."""
    first = not process_number()
    with contextlib.ExitStack() as held:
        with refusing_together():
            comparison = plan(sys.argv[1:] if arguments is None else arguments)
            keep_open = ()
            if first and not comparison.dry_run:
                who = "another comparison, or a run that one started,"
                alone = only_one(comparison.root, flag="output_root", who=who, with_children=True)
                keep_open = held.enter_context(alone)
        if comparison.dry_run:
            if first:
                show_plan(comparison)
            return
        held.enter_context(runs.stopping_on_sigterm())
        if first:
            show(comparison, run_all(comparison, keep_open))
        else:
            take_part(comparison)


def show_plan(comparison: Comparison) -> None:
    """Print what would be run."""
    print(f"{comparison.title}: {number_of(len(comparison.planned), 'run')}")
    print("\n".join(table.plan(comparison.planned)))


def plan(arguments: list[str]) -> Comparison:
    """The comparison that the flags say, and that can be run: everything is checked before anything is.

    Raises:
        InputError: a flag, a file, the data or what is in the output folder is wrong.
    """
    parser = build_parser(show_all="--help_all" in arguments)
    arguments = train.with_flags_of_file(arguments, {*parser.flags(), *SPELLINGS})
    refuse_set_by_the_comparison(arguments)
    train.set_defaults(parser, arguments)
    # what a run trains with is said by its method; of the trainers this one takes every flag
    args, task, training = parser.parse([*arguments, "--trainer=regular"])
    # the others go to every run as they are
    _, passed = FlagParser(CompareArguments).parse_known_args(arguments)
    passed = [*defaults_of_runs(arguments, training), *renamed_rank(passed)]
    known = train.build_parser(show_all=True)
    seeds = methods.choose_seeds(args.seeds)
    variants = methods.read_variants(Path(args.variants), known.flags()) if args.variants else {}
    chosen = methods.choose(args.methods, variants)
    swept = sweep.read_sweep(args.sweep or [], known.numeric_flags())
    if swept and not task.num_dev:
        raise InputError("num_dev=0: a sweep chooses on the development set")
    named = task_of(task)
    check_measurement(task, named, "zo")
    draw_samples(task, named, seeds[0])
    check_objectives(task.objective, named, chosen)
    title = f"{Path(task.model_name).name} on {named.name}"
    root = Path(args.output_root or Path("runs") / f"compare-{Path(task.model_name).name}-{named.name}")
    refuse_unwritable(root, f"output_root={root}")
    if args.loss_figure_path:
        refuse_figure_place(Path(args.loss_figure_path))
    common = {
        name: getattr(training, name)
        for name in ("lora_alpha", "lora_r", "xgblora_steps_per_iteration", "xgblora_merge_frequency")
    }
    planned = [
        planned_run(root, passed, method, seed, setting, common, training.estimator.forwards)
        for method in chosen
        for setting in sweep.settings_of(method, swept)
        for seed in seeds
    ]
    for run in planned:
        runs.check(run, anew=not args.skip_completed)
    return Comparison(root, title, planned, seeds, args, task.dry_run)


def build_parser(*, show_all: bool) -> FlagParser:
    """The parser of the comparison's flags and those of `xgblora-train`."""
    parser = FlagParser(
        (CompareArguments, TaskArguments, XGBLoRAArguments),
        usage="xgblora-compare [FLAGS.yaml] [--flag value ...]",
        description=DESCRIPTION,
        epilog="All flags of transformers.TrainingArguments are taken; --help_all lists them.",
    )
    for spelling, flag in SPELLINGS.items():
        parser.add_spelling(flag, spelling)
    parser.add_argument("--help_all", action="help", help="show every flag and exit")
    shown = train.SHOWN_FLAGS | set(CompareArguments.__annotations__)
    for action in parser._actions:
        if action.dest in SET_BY_THE_COMPARISON or (not show_all and action.dest not in shown):
            action.help = argparse.SUPPRESS
    return parser


def refuse_set_by_the_comparison(arguments: list[str]) -> None:
    """Raise InputError if a flag is given that the comparison sets for each run."""
    given = train.names_of(arguments)
    for name, instead in SET_BY_THE_COMPARISON.items():
        if name in given:
            raise InputError(f"--{name}: the comparison sets it for each run; {instead}")


def renamed_rank(words: list[str]) -> list[str]:
    """`words` with `--lora_rank` as `xgblora-train` calls it."""
    spellings = ("--lora_rank", "--lora-rank")
    return [f"--lora_r{word[len(spellings[0]) :]}" if word.split("=")[0] in spellings else word for word in words]


def defaults_of_runs(arguments: list[str], training: XGBLoRAArguments) -> list[str]:
    """Flags that a run of a comparison has unless they are given: checkpoints to go on from, no bar, no model."""
    given = train.names_of(arguments)
    words = [] if given & {"save_model", "no_save_model"} else ["--save_model=false"]
    if "disable_tqdm" not in given:
        words.append("--disable_tqdm=true")
    if "save_strategy" not in given:
        often = training.eval_steps if (training.eval_steps or 0) >= 1 else 100
        words += ["--save_strategy=steps"]
        words += [] if "save_steps" in given else [f"--save_steps={int(often)}"]
        words += [] if "save_total_limit" in given else ["--save_total_limit=1"]
    return words


def check_objectives(objective: str, task: Task, chosen: list[Method]) -> None:
    """Raise InputError if a method cannot be trained on its objective; the one line names the method."""
    for method in chosen:
        try:
            check_objective(method.flags.get("objective", objective), task, method.trainer)
        except InputError as error:
            raise InputError(f"methods={method.name}: {error}") from None


def refuse_figure_place(path: Path) -> None:
    """Raise InputError if no figure can be written to `path`: now, and not when all runs have ended."""
    if path.is_dir():
        raise InputError(f"loss_figure_path={path}: is a folder; name a file")
    refuse_unwritable(path.parent, f"loss_figure_path={path}: {path.parent}")


def planned_run(
    root: Path,
    passed: list[str],
    method: Method,
    seed: int,
    setting: sweep.Setting,
    common: dict[str, object],
    forwards: int,
) -> PlannedRun:
    """The run of a method with a setting on a seed; `forwards` are those of a zeroth-order step.

    Raises:
        InputError: its flags contradict each other.
    """
    folder = root / runs.folder_name(method.name, seed, setting)
    of_run = {"seed": seed, "output_dir": folder, "resume_from_checkpoint": "last"}
    try:
        settings = {**method.settings(common, setting), **of_run}
        words = [*as_words(method.defaults), *method.shared(passed), *as_words(settings)]
        task, args = train.parse(words)
        if args.trainer == "population":
            words += as_words(steps_of_population(args, forwards, own={*method.flags, *setting}))
            task, args = train.parse(words)
        check_run(task, args, task_of(task))
        resolved = json.loads(json.dumps(configuration(task, args)))
    except InputError as error:
        raise InputError(f"{method.name}: {error}") from None
    return PlannedRun(method, seed, setting, RunFolder(folder), words, resolved)


def as_words(flags: dict[str, object]) -> list[str]:
    """Flags as a command line gives them."""
    return [word for name, value in flags.items() for word in train.as_arguments(name, value)]


def run_all(comparison: Comparison, keep_open: tuple[int, ...]) -> dict[str, Ended]:
    """Run what is not finished; how those ended that did not come to their end, by name."""
    planned = comparison.planned
    done = [run for run in planned if run.done] if comparison.args.skip_completed else []
    kept = f", {len(done)} of them finished already" if done else ""
    print(f"{comparison.title}: {number_of(len(planned), 'run')}{kept}, in {comparison.root}", flush=True)
    ended: dict[str, Ended] = {}
    next_turn = processes.turns()
    for number, run in enumerate(planned, start=1):
        if run in done:
            continue
        print(f"[{number}/{len(planned)}] {run.name} ... ", end="", flush=True)
        begun = time.perf_counter()
        if not comparison.args.skip_completed:
            runs.forget(run)
        next_turn(run.name)
        try:
            failure = runs.carry_out(run, lambda run: runs.start_process(run, keep_open))
        except (KeyboardInterrupt, SystemExit):
            print("stopped; the same command goes on from here", flush=True)
            raise
        if failure is not None:
            ended[run.name] = failure
        print(outcome(run, failure, time.perf_counter() - begun), flush=True)
    next_turn(None)
    return ended


def take_part(comparison: Comparison) -> None:
    """Be one of the processes of each run that the first process starts."""
    planned, next_turn = {run.name: run for run in comparison.planned}, processes.turns()
    while (name := next_turn(None)) is not None:
        runs.start_process(planned[name])


def outcome(run: PlannedRun, failure: Ended | None, seconds: float) -> str:
    """The end of the line of a run."""
    if failure is not None:
        last = failure.last_lines[-1] if failure.last_lines else "it printed nothing"
        return f"ended with status {failure.exit_status} ({last})"
    finished = FinishedRun(run)
    value = table.percent(report.Spread.of([finished.measured("eval", finished.metric)]))
    return f"held-out {finished.metric} {value}, {seconds:.0f} s"


def show(comparison: Comparison, ended: dict[str, Ended]) -> None:
    """Write the result, and print it."""
    made = report.make(comparison.planned, ended, comparison.seeds)
    root = comparison.root
    write_text(root / RESULT, json.dumps({"title": comparison.title, **report.to_json(made)}, indent=1) + "\n")
    lines = table.summary(made)
    write_text(root / SUMMARY, "\n".join(lines).strip("\n") + "\n")
    print("\n".join(lines))
    print()
    if made.chosen:
        drawn = figures.draw_all(
            made, root, title=comparison.title, loss_figure=comparison.loss_figure, pdf=comparison.args.figure_pdf
        )
        print(f"figures: {', '.join(map(str, drawn))}")
        write_text(root / web_page.NAME, web_page.page(made, comparison.title, drawn))
        print(f"report:  {root / web_page.NAME}")
    print(f"result:  {root / RESULT}")
    if not made.chosen:
        sys.exit(1)
