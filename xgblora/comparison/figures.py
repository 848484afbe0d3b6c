"""The figures of a comparison: curves over steps and over forwards, merges, and the metric by round."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from xgblora.comparison.report import Candidate, Report
from xgblora.comparison.results import FORWARDS_OF_A_FIRST_ORDER_STEP, FinishedRun
from xgblora.figure_file import figure_file
from xgblora.records.step_losses import smoothed

# Okabe and Ito's, told apart by the colour-blind too; black and yellow left out
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "osD^vP"
STEPS = "optimizer step"
FORWARDS = f"forwards of training (a first-order step counted as {FORWARDS_OF_A_FIRST_ORDER_STEP})"


@dataclass(frozen=True)
class Curve:
    """One method.

    Attributes:
        name: for the legend.
        x: float [T].
        seeds: float [S, T], what is drawn: its mean, and a band of one standard deviation.
        raw: float [T], drawn faint below; None for none.
        merges: where on the x-axis it merged.
        index: the place of the method among all, which gives its colour: the same one in every figure.
        like: the name of an earlier curve that is the same on every seed; this one is dashed on top of it.
    """

    name: str
    x: np.ndarray
    seeds: np.ndarray
    raw: np.ndarray | None = None
    merges: list[float] = field(default_factory=list)
    index: int = 0
    like: str | None = None

    @property
    def mean(self) -> np.ndarray:
        """float [T]."""
        return self.seeds.mean(axis=0)

    @property
    def deviation(self) -> np.ndarray:
        """float [T]; 0 of one seed."""
        return self.seeds.std(axis=0, ddof=1) if len(self.seeds) > 1 else np.zeros(self.seeds.shape[1])


def draw_all(report: Report, root: Path, *, title: str, loss_figure: Path, pdf: bool) -> list[Path]:
    """Draw every figure that there is something for; their paths.

    Args:
        report: with one finished run or more.
        root: folder of the figures.
        title: of all of them.
        loss_figure: place of the loss by step.
        pdf: whether each is written as PDF too.
    """
    metric = f"{report.metric}, development set"
    figures = [
        (loss_figure, loss_curves(report, by_forwards=False), STEPS, "training loss"),
        (root / "loss_by_forwards.png", loss_curves(report, by_forwards=True), FORWARDS, "training loss"),
        (root / "metric.png", _curves(report, _metric_by_step(report)), STEPS, metric),
        (root / "metric_by_forwards.png", _curves(report, _metric_by_forwards(report)), FORWARDS, metric),
        (root / "loss_at_merges.png", _curves(report, _loss_at_merges), STEPS, "loss at merges, development set"),
        (root / "metric_by_round.png", _curves(report, _metric_by_round(report)), "boosting round", metric),
    ]
    written = []
    for path, curves, xlabel, ylabel in figures:
        if curves:
            draw(path, curves, title=title, xlabel=xlabel, ylabel=ylabel, pdf=pdf)
            written.append(path)
    return written


def loss_curves(report: Report, *, by_forwards: bool) -> list[Curve]:
    """The training loss of each method, smoothed, with the mean over seeds behind it."""
    same = _first_of_the_same(report)
    curves = []
    for index, candidate in enumerate(report.chosen):
        steps = min(len(run.step_losses) for run in candidate.runs)
        losses = np.array([run.step_losses[:steps] for run in candidate.runs])
        scale = candidate.runs[0].forwards_per_step if by_forwards else 1
        window = max(5, steps // 40)
        curves.append(
            Curve(
                _label(candidate),
                scale * np.arange(1, steps + 1),
                np.array([smoothed(of_seed, window) for of_seed in losses]),
                raw=losses.mean(axis=0),
                # a mark at every step marks nothing
                merges=[scale * merge["step"] for merge in candidate.runs[0].merges if candidate.method.has_rounds],
                index=index,
                like=same.get(candidate.method.name),
            )
        )
    return curves


def draw(path: Path, curves: list[Curve], *, title: str, xlabel: str, ylabel: str, pdf: bool = False) -> None:
    """Write a figure of `curves` to `path` (PNG), and beside it as PDF.

    Curves of 40 points or fewer get markers. What diverges leaves the figure at the top.
    """
    with figure_file(path, size=(7, 4.6), dpi=200, pdf=pdf) as (figure, axes):
        for curve in curves:
            _draw_curve(axes, curve)
        axes.set_xlabel(xlabel, fontsize="medium" if len(xlabel) < 40 else "small")
        axes.set(ylabel=ylabel, title=title)
        if any(curve.raw is not None for curve in curves):
            axes.set_ylim(_limits(curves))
        axes.margins(x=0.02)
        axes.grid(alpha=0.2)
        # beside no curve, however many methods there are
        bands = "bands: one standard deviation over seeds" if any(len(curve.seeds) > 1 for curve in curves) else None
        style = {"frameon": False, "fontsize": "small", "title_fontsize": "small"}
        # two columns of longer names do not fit beside each other
        longest = max((len(name) for name in axes.get_legend_handles_labels()[1]), default=0)
        figure.legend(loc="outside lower center", ncols=1 if longest > 44 else 2, title=bands, **style)


def _draw_curve(axes, curve: Curve) -> None:
    colour, marker = COLOURS[curve.index % len(COLOURS)], MARKERS[curve.index % len(MARKERS)]
    if curve.raw is not None:
        axes.plot(curve.x, curve.raw, color=colour, alpha=0.18, linewidth=0.7)
    if len(curve.seeds) > 1:
        edges = curve.mean - curve.deviation, curve.mean + curve.deviation
        axes.fill_between(curve.x, *edges, color=colour, alpha=0.15, linewidth=0)
    # two curves that are the same: the later one dashed over the earlier
    # and where two are the same for a while, the earlier one is to be seen on both sides of the later
    width = 1.5 if curve.index % 2 else 2.8
    style = {"linestyle": (0, (3, 3)), "zorder": 4} if curve.like else {"zorder": 3}
    marked = {"marker": marker, "markersize": 4} if len(curve.x) <= 40 else {}
    name = f"{curve.name} (same as {curve.like})" if curve.like else curve.name
    axes.plot(curve.x, curve.mean, color=colour, linewidth=width, label=name, **style, **marked)
    if curve.merges:
        # a row of ticks at the foot, one row a method
        height = [0.012 + 0.03 * curve.index] * len(curve.merges)
        axes.plot(
            *(curve.merges, height, "|"),
            color=colour,
            markersize=5,
            transform=axes.get_xaxis_transform(),
            label=f"merges of {_method_of(curve)}",
        )


def _limits(curves: list[Curve]) -> tuple[float, float] | None:
    """Of the y-axis of losses: what the smoothed curves cover, without most of what a run that diverges does.

    Where losses begin, and the better half of the curves, is always seen.
    """
    edges = [curve.mean + sign * curve.deviation for curve in curves for sign in (-1, 1)]
    finite = [edge[np.isfinite(edge)] for edge in edges]
    finite = [edge for edge in finite if len(edge)]
    if not finite:
        return None
    low, high = min(edge.min() for edge in finite), max(edge.max() for edge in finite)
    highest = sorted(edge.max() for edge in finite)
    usual = max(highest[(len(highest) - 1) // 2], *(edge[0] for edge in finite))
    if high - low > 3 * (usual - low) > 0:
        high = low + 1.5 * (usual - low)
    room = 0.06 * (high - low) or 0.5
    return low - 2 * room, high + room


def _curves(report: Report, points_of: Callable[[FinishedRun], list[tuple[float, float]]]) -> list[Curve]:
    """A curve for each method that has points, at the x that all its seeds have."""
    same = _first_of_the_same(report)
    curves = []
    for index, candidate in enumerate(report.chosen):
        seeds = [dict(points_of(run)) for run in candidate.runs]
        shared = sorted(set.intersection(*(set(points) for points in seeds)))
        if shared:
            values = np.array([[points[x] for x in shared] for points in seeds], dtype=float)
            like = same.get(candidate.method.name)
            like = like if like in map(_method_of, curves) else None
            curves.append(Curve(_label(candidate), np.array(shared), values, index=index, like=like))
    return curves


def _metric_by_step(report: Report) -> Callable[[FinishedRun], list[tuple[float, float]]]:
    def points(run: FinishedRun) -> list[tuple[float, float]]:
        known = [(entry["step"], entry[report.metric]) for entry in run.evaluations if entry[report.metric] is not None]
        # zero-shot alone is no curve
        return known if len(known) > 1 else []

    return points


def _metric_by_forwards(report: Report) -> Callable[[FinishedRun], list[tuple[float, float]]]:
    by_step = _metric_by_step(report)
    return lambda run: [(run.forwards_per_step * step, value) for step, value in by_step(run)]


def _loss_at_merges(run: FinishedRun) -> list[tuple[float, float]]:
    return [(merge["step"], merge["held_out_loss"]) for merge in run.merges if merge["held_out_loss"] is not None]


def _metric_by_round(report: Report) -> Callable[[FinishedRun], list[tuple[float, float]]]:
    def points(run: FinishedRun) -> list[tuple[float, float]]:
        if not run.run.configuration["staged_eval"]:
            return []
        at = dict(_metric_by_step(report)(run))
        steps = [0, *(merge["kept_step"] for merge in run.merges)]
        return [(round, at[step]) for round, step in enumerate(steps) if step in at]

    return points


def _first_of_the_same(report: Report) -> dict[str, str]:
    """For each method whose step losses are those of an earlier one on every seed: the first of these."""
    first: dict[str, str] = {}
    for pair in report.same_curves:
        if pair.everywhere:
            first.setdefault(pair.other, pair.method)
    return first


def _label(candidate: Candidate) -> str:
    n = len(candidate.runs)
    setting = "".join(f", {flag} {value!r}" for flag, value in candidate.setting.items())
    return f"{candidate.method.name} ({n} seed{'s' if n > 1 else ''}{setting})"


def _method_of(curve: Curve) -> str:
    return curve.name.split(" (")[0]
