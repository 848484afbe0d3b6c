"""The printed summary: one table, and what it says in words."""

import math

from xgblora.comparison import runs
from xgblora.comparison.ascii_plot import ascii_plot
from xgblora.comparison.report import Candidate, Difference, Report, Spread
from xgblora.comparison.runs import PlannedRun
from xgblora.comparison.sweep import named
from xgblora.records.step_losses import smoothed
from xgblora.spelling import memory_size


def summary(report: Report) -> list[str]:
    """The lines of the summary."""
    if report.metric is None:
        return ["no run has finished", *failures(report)]
    lines = [*_loss_plot(report), "", *_table(*results(report)), *notes(report)]
    if any(candidate.setting for candidate in report.candidates):
        lines += ["", "chosen (*) on the development set:", *_table(*settings(report))]
    lines += ["", *(about(difference, report.metric) for difference in report.differences)]
    return [*lines, *same_curves(report), *failures(report)]


def plan(planned: list[PlannedRun]) -> list[str]:
    """The runs, one a line: method, seed, the flags in which they differ, the folder, and how far it is."""
    flags = runs.differing_flags(planned)
    rows = [
        (
            run.method.name,
            str(run.seed),
            *(str(run.configuration[flag]) for flag in flags),
            "finished" if run.done else "begun" if run.record.exists() else "to run",
            str(run.folder.path),
        )
        for run in planned
    ]
    return _table(("method", "seed", *flags, "", "folder"), rows)


def about(difference: Difference, metric: str) -> str:
    """What a difference between two methods says, and what it does not."""
    spread = difference.spread
    one, other = difference.method, difference.other
    if spread.mean is None:
        return f"{one} and {other}: no seed that both finished"
    seeds = f"{spread.n} seed{'s' if spread.n > 1 else ''}"
    if spread.mean == 0:
        return f"{one} and {other}: the same held-out {metric} on average ({seeds})"
    ahead = f"{one} is {100 * spread.mean:.1f} points of held-out {metric} ahead of {other} ({seeds}"
    if spread.error is None:
        return f"{ahead}): one seed cannot tell a difference from chance"
    ahead += f", standard error of the difference {100 * spread.error:.1f})"
    if spread.mean <= spread.error:
        return f"{ahead}: not more than its standard error, no difference is shown"
    if spread.mean <= 2 * spread.error:
        return f"{ahead}: more than its standard error, less than twice; a hint, no more"
    few = "" if spread.n >= 5 else f"; {spread.n} seeds are few"
    return f"{ahead}: more than twice its standard error{few}"


def percent(spread: Spread) -> str:
    """ "84.2 ± 1.3%"."""
    if spread.mean is None:
        return "-"
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.1f}"
    return f"{100 * spread.mean:.1f}{deviation}%"


def plain(spread: Spread, digits: int) -> str:
    """ "0.52 ± 0.01"."""
    if spread.mean is None:
        return "-"
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.{digits}f}"
    return f"{spread.mean:.{digits}f}{deviation}"


def results(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heading and rows: zero-shot, and every method with its best setting."""
    heading = ("", f"held-out {report.metric}", f"dev {report.metric}", "dev loss", "seeds", "steps/s", "forwards")
    before = report.chosen[0]
    rows = [
        (
            "zero-shot",
            percent(before.spread("eval", when="zero_shot")),
            percent(before.spread("dev", when="zero_shot")),
            plain(before.spread("dev", "loss", when="zero_shot"), 3),
            str(len(before.runs)),
            "-",
            "-",
            "-",
        )
    ]
    return (*heading, "peak memory"), rows + [_row(candidate) for candidate in report.chosen]


def _row(candidate: Candidate) -> tuple[str, ...]:
    speeds = Spread.of([run.steps_per_second for run in candidate.runs])
    memory = Spread.of([run.peak_memory for run in candidate.runs]).mean
    return (
        candidate.method.name,
        percent(candidate.spread("eval")),
        percent(candidate.spread("dev")),
        plain(candidate.spread("dev", "loss"), 3),
        str(len(candidate.runs)),
        plain(speeds, 1),
        f"{candidate.runs[0].forwards:,}",
        "-" if memory is None else memory_size(memory, "GiB", digits=2),
    )


def notes(report: Report) -> list[str]:
    """What the numbers of `results` are."""
    lines = ["mean ± standard deviation over seeds; forwards of training, a first-order step counted as 3"]
    run = report.chosen[0].runs[0]
    share, examples = run.measured("eval", run.metric), run.metrics["results"]["trained"]["eval"]["examples"]
    if run.metric == "accuracy" and share is not None:
        error = 100 * math.sqrt(share * (1 - share) / examples)
        lines.append(
            f"one accuracy on {examples} held-out examples has a standard error of {error:.1f} points, seeds aside"
        )
    return lines


def settings(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heading and rows: every method with every setting, the chosen ones marked."""
    rows = [
        (
            candidate.method.name + (" *" if candidate in report.chosen else ""),
            named(candidate.setting) or "-",
            percent(candidate.spread("dev")),
            plain(candidate.spread("dev", "loss"), 3),
            percent(candidate.spread("eval")),
            str(len(candidate.runs)),
        )
        for candidate in report.candidates
    ]
    return ("", "setting", f"dev {report.metric}", "dev loss", f"held-out {report.metric}", "seeds"), rows


def same_curves(report: Report) -> list[str]:
    """Which methods are one and the same by their losses."""
    same = [pair for pair in report.same_curves if pair.everywhere]
    if not same:
        return ["no two methods have the same losses step by step"] if report.same_curves else []
    return [
        f"{pair.method} and {pair.other}: the same losses step by step, bit for bit, on {len(pair.by_seed)} of "
        f"{len(pair.by_seed)} seeds"
        for pair in same
    ]


def failures(report: Report) -> list[str]:
    """The runs that did not finish, and their last words."""
    lines = []
    for run, ended in report.failures:
        last = ended.last_lines[-1] if ended.last_lines else "it printed nothing"
        lines.append(f"not finished: {run.name} ended with status {ended.exit_status} ({last}); see {run.console}")
    return [*lines, "the same command tries them again"] if lines else []


def _loss_plot(report: Report) -> list[str]:
    curves, forwards = {}, {candidate.runs[0].forwards_per_step for candidate in report.chosen}
    for candidate in report.chosen:
        losses = candidate.runs[0].step_losses
        # steps that take different numbers of forwards are not to be laid over each other
        wide = candidate.runs[0].forwards_per_step if len(forwards) > 1 else 1
        curves[candidate.method.name] = smoothed(losses, max(5, len(losses) // 20)).repeat(wide).tolist()
    seeds = {candidate.runs[0].run.seed for candidate in report.chosen}
    of = f"seed {seeds.pop()}" if len(seeds) == 1 else "each method's first seed"
    by = "forwards" if len(forwards) > 1 else "step"
    return ["", f"training loss by {by}, smoothed, {of}", *ascii_plot(curves)]


def _table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in [heading, *rows]) for column in range(len(heading))]
    ruled = [heading, tuple("-" * width for width in widths), *rows]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in ruled
    ]
