"""docs/gpu.md and the README's line about GPUs, made of results files; no figure is typed by hand."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.report import counts, facts, failures, timings
from xgblora.figure_file import figure_file

HEAD = """# On a GPU

Made by `scripts/gpu_page.py` of `benchmarks/results/*.json`; no figure here is typed by hand.
"""
UNMEASURED = """No GPU has measured this package yet. On a machine with one, and without a network,

    python scripts/gpu_suite.py --minutes 8

writes `benchmarks/results/<gpu>.json`: checks, exactness, speed and tests, and

    python scripts/gpu_page.py

makes this page and the README's lines of it.
"""
NOT_MEASURED = "GPU figures: not yet measured ([docs/gpu.md](docs/gpu.md) says how to)."
# a label that covers the line at 1 or 100%
LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
BEGIN, END = "<!-- made by scripts/gpu_page.py -->", "<!-- until here -->"
# the ways of a step in the order of the table, and what they are called
PEERS = {
    "mezo": "MeZO",
    "mezo_same_rows": "MeZO, same rows",
    "lozo": "LOZO",
    "grzo": "GRZO",
    "full": "ours, all parameters",
}


@dataclass(frozen=True)
class Goal:
    """A figure that the package is to reach on a GPU.

    Attributes:
        title: what is measured.
        timing, case: the record that has it: its operation, and what its case holds.
        way: of its ratios, the one that counts.
        at_most: the largest ratio of ours over it that reaches the goal.
        form: how the ratio is written: "ratio", "times" (its inverse) or "share" (its inverse in percent).
    """

    title: str
    timing: str
    case: str
    way: str
    at_most: float
    form: str = "ratio"

    def found(self, results: dict) -> float | None:
        """The worst ratio measured, None where there is none."""
        ratios = [
            record["ours_over"][self.way]
            for stage in ("step", "kernels")
            for record in timings(results, stage)
            if record["timing"] == self.timing and self.case in record["case"] and self.way in record["ours_over"]
        ]
        return max(ratios, default=None)

    def written(self, ratio: float) -> str:
        """A ratio in the goal's form."""
        return {"ratio": f"{ratio:.3f}", "times": f"{1 / ratio:.1f} times", "share": f"{100 / ratio:.0f}%"}[self.form]

    def verdict(self, results: dict) -> str:
        """What was measured, and whether it misses the goal."""
        ratio = self.found(results)
        if ratio is None:
            return "not measured"
        return self.written(ratio) + ("" if ratio <= self.at_most else " (missed)")

    @property
    def asked(self) -> str:
        """The goal itself, such as "at most 1.050"."""
        return f"{'at most' if self.form == 'ratio' else 'at least'} {self.written(self.at_most)}"


GOALS = (
    Goal("zeroth-order step / two bare forwards, OPT-350m", "step", "opt-350m, bfloat16", "floor", 1.05),
    Goal("the same / its rows in one bare forward", "step", "opt-350m, bfloat16", "floor_stacked", 1.05),
    Goal("MeZO's step in its own form / ours, OPT-350m", "step", "opt-350m, bfloat16", "mezo", 0.125, "times"),
    Goal("`rank1_linear` / bare linear, M = 4096, K = N = 4096", "rank1_linear", "M=4096 K=N=4096 G=1", "floor", 1.05),
    Goal("`rank1_linear` / bare linear, M = 16, K = N = 4096", "rank1_linear", "M=16 K=N=4096 G=1", "floor", 1.10),
    Goal("merge, share of copy bandwidth", "merge_rank1_", "", "floor", 1 / 0.9, "share"),
)


def readme_lines(measured: list[dict]) -> str:
    """What stands in the README between the two marks: a table of the goals, or that nothing was measured."""
    if not measured:
        return NOT_MEASURED
    names = [device_of(results) for results in measured]
    lines = [f"| bf16, batch 16, length 64 | goal | {' | '.join(names)} |", f"| --- | --- |{' --- |' * len(names)}"]
    for goal in GOALS:
        found = [goal.verdict(results) for results in measured]
        lines.append(f"| {goal.title} | {goal.asked} | {' | '.join(found)} |")
    return "\n".join([*lines, "", "More in [docs/gpu.md](docs/gpu.md)."])


def with_lines(readme: str, lines: str) -> str:
    """The README with `lines` between its two marks.

    Raises:
        ValueError: it has no such place.
    """
    before, mark, rest = readme.partition(BEGIN)
    _, other, after = rest.partition(END)
    if not mark or not other:
        raise ValueError(f"no place between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{lines}\n{END}{after}"


def page(measured: list[dict], figures: list[str]) -> str:
    """docs/gpu.md.

    Args:
        measured: results files, one a device.
        figures: the picture of each, as the page finds it.
    """
    if not measured:
        return f"{HEAD}\n{UNMEASURED}"
    return "\n".join([HEAD, *(line for one in zip(measured, figures, strict=True) for line in of_device(*one))])


def of_device(results: dict, figure: str) -> Iterator[str]:
    """The lines about one device."""
    found, versions = facts(results), facts(results).get("versions", {})
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "transformers") if versions.get(name))
    yield f"## {device_of(results)}\n"
    yield f"{results['started'][:10]}, commit {results['commit'] or 'unknown'}, {named}, {_ceilings(found)}.\n"
    held, failed = counts(results)
    yield f"Checks: {held} held, {failed} did not.\n"
    wrong = failures(results)
    if wrong:
        yield "\n".join(["What did not hold:\n", *(f"- {line}" for line in wrong), ""])
    left_out = [stage for stage in results["stages"] if stage["state"] in ("skipped", "partial", "waiting", "running")]
    if left_out:
        yield "\n".join(["Left out:\n", *(f"- {one['name']}: {one['reason'] or one['state']}" for one in left_out), ""])
    yield from _table(["goal", "asked", "measured"], [[one.title, one.asked, one.verdict(results)] for one in GOALS])
    yield f"![the step over its floor, and operations as a share of their ceilings]({figure})\n"
    yield from _steps(results)
    yield from _kernels(results)


def device_of(results: dict) -> str:
    """Its name."""
    return facts(results).get("device", {}).get("name", "unknown device")


def draw(results: dict, path: Path) -> None:
    """The figure of one device: the step over its floor by model shape, and each operation's share of its ceiling."""
    steps, kernels = list(timings(results, "step")), list(timings(results, "kernels"))
    height = 1.5 + 0.3 * len(steps) * (len(PEERS) + 1) + 0.26 * len(kernels)
    ratios = [1.2 + 0.3 * len(steps) * (len(PEERS) + 1), 1.2 + 0.26 * len(kernels)]
    with figure_file(path, 2, size=(9, height), share_x=False, height_ratios=ratios) as (figure, (above, below)):
        figure.suptitle(device_of(results), fontsize=11)
        _draw_steps(above, steps)
        _draw_kernels(below, kernels)


def _draw_steps(axes, steps: list[dict]) -> None:
    names, values, colors = [], [], []
    for record in steps:
        time = record["microseconds"]
        for way, title in {"ours": "ours", **PEERS}.items():
            if way in time:
                names.append(f"{record['shape']}: {title}")
                values.append(time[way] / time["floor"])
                colors.append("tab:green" if way == "ours" else "tab:gray")
    _bars(axes, names, values, colors, "{:.2f}")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("time of a step / time of two bare forwards", fontsize=9)


def _draw_kernels(axes, kernels: list[dict]) -> None:
    shares = [100 / record["ours_over"]["floor"] for record in kernels]
    names = [f"{record['timing']}, {record['case']}" for record in kernels]
    _bars(axes, names, shares, ["tab:green"] * len(names), "{:.0f}%")
    axes.axvline(100.0, color="black", linewidth=0.8)
    axes.set_xlabel("share of the ceiling: the bare product, or a copy of as many bytes", fontsize=9)


def _bars(axes, names: list[str], values: list[float], colors: list[str], label: str) -> None:
    bars = axes.barh(range(len(names)), values, color=colors)
    axes.bar_label(bars, [label.format(value) for value in values], padding=3, fontsize=7, bbox=LABEL)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.margins(x=0.1, y=0.01)
    axes.invert_yaxis()


def _steps(results: dict) -> Iterator[str]:
    rows = []
    for record in timings(results, "step"):
        over, time = record["ours_over"], record["microseconds"]
        peers = [f"{1 / over[way]:.2f}" if way in over else "" for way in PEERS]
        captured = f"{time['uncaptured'] / 1e3:.2f}" if "uncaptured" in time else ""
        floor = f"{over['floor']:.3f}"
        rows.append([record["case"], f"{time['ours'] / 1e3:.2f}", captured, floor, *peers])
    if rows:
        yield "A step, and how many times as long each peer takes for the same batch:\n"
        head = ["shape", "ms", "uncaptured, ms", "over the floor", *PEERS.values()]
        yield from _table(head, rows)


def _kernels(results: dict) -> Iterator[str]:
    rows = []
    for record in timings(results, "kernels"):
        time, over = record["microseconds"], record["ours_over"]
        others = ", ".join(f"{1 / value:.2f} {name}" for name, value in over.items() if name != "floor")
        figures = [f"{time['ours']:.1f}", f"{time['floor']:.1f}", f"{over['floor']:.3f}", others]
        rows.append([f"`{record['timing']}`", record["case"], record["floor"], *figures])
    if rows:
        yield "Operations, the device's own time; the last column is how many times as long others take:\n"
        yield from _table(["operation", "case", "floor", "us", "floor, us", "over the floor", "others"], rows)


def _table(head: list[str], rows) -> Iterator[str]:
    lines = [head, ["---"] * len(head), *rows]
    yield "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _ceilings(found: dict) -> str:
    copied, product = found.get("bytes_per_second"), found.get("flops_per_second, bfloat16")
    parts = [f"a copy moves {copied / 1e12:.2f} TB/s" if copied else ""]
    parts += [f"a bf16 product does {product / 1e12:.0f} TFLOP/s" if product else ""]
    return ", ".join(filter(None, parts)) or "ceilings not measured"
