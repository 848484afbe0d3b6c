"""Draw the figures of the README: the loop of a run, and what a step needs of memory and of time.

    python scripts/readme_figures.py

writes docs/images/loop.png, memory.png and speed.png. The bars come from `benchmarks/results/memory.csv`
(`scripts/measure_memory.py`) and from the results file of a CPU (`pytest benchmarks/`); no figure is typed by hand.
"""

import argparse
import csv
import sys
from pathlib import Path

from xgblora.figure_file import figure_file

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OURS, OTHER = "tab:green", "tab:gray"
MEMORY = {
    "inference": "inference",
    "zeroth_order": "XGBLoRA, zeroth-order",
    "lora_adamw": "LoRA r=1 + AdamW",
    "full_adamw": "all parameters + AdamW",
}
SPEED = {"floor": "two bare forwards", "step": "a step of ours", "mezo": "the same step in MeZO's form"}
# a box of the picture: where its middle is, and its text
STEP = {
    "perturb": ((1.1, 2.5), "perturb\nadapter + eps z(seed)\nadapter - eps z(seed)"),
    "forward": ((4.2, 2.5), "two forwards\none batch, both signs\nL+ and L-"),
    "update": ((7.3, 2.5), "step\ng = (L+ - L-) / 2 eps\nadapter -= rate g z(seed)"),
}
ROUND = {
    "merge": ((7.3, 0.7), "merge\nW += scale b a^T\nexact in 16 bits"),
    "ledger": ((4.2, 0.7), "ledger\nthe adapter, recorded"),
    "next": ((1.1, 0.7), "next round\na new rank-1 adapter\na layer"),
}
ARROWS = (
    *(("perturb", "forward", ""), ("forward", "update", ""), ("update", "merge", "after N steps")),
    *(("merge", "ledger", ""), ("ledger", "next", ""), ("next", "perturb", "")),
)
HALF_WIDTH, HALF_HEIGHT = 1.12, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", type=Path, default=RESULTS / "memory.csv", help="what a step needs of memory")
    parser.add_argument(
        "--speed", type=Path, default=RESULTS / "intel-r-xeon-r-processor.csv", help="results file of a device"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images", help="folder of the figures")
    arguments = parser.parse_args()
    for file in (arguments.memory, arguments.speed):
        if not file.is_file():
            sys.exit(f"error: {file}: there is no such file")
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw_loop(arguments.output / "loop.png")
    draw_memory(rows_of(arguments.memory), arguments.output / "memory.png")
    draw_speed(rows_of(arguments.speed), arguments.output / "speed.png")


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def draw_loop(path: Path) -> None:
    """Two rows of boxes: a step above, the end of a round below."""
    boxes = STEP | ROUND
    with figure_file(path, size=(8.4, 3.4)) as (_, axes):
        for name, ((x, y), text) in boxes.items():
            title, _, rest = text.partition("\n")
            color = "#e8f3e8" if name in STEP else "#e8eef8"
            frame = {"boxstyle": "round,pad=0.1", "facecolor": color, "edgecolor": "0.4"}
            corner, size = (x - HALF_WIDTH, y - HALF_HEIGHT), (2 * HALF_WIDTH, 2 * HALF_HEIGHT)
            axes.add_patch(_box(corner, size, frame))
            axes.text(x, y + 0.28, title, ha="center", va="center", weight="bold", fontsize=10)
            axes.text(x, y - 0.16, rest, ha="center", va="center", fontsize=8.5)
        for begin, end, said in ARROWS:
            _draw_arrow(axes, boxes[begin][0], boxes[end][0], said)
        # every step but the last of a round
        style = {"arrowstyle": "->", "color": "0.3", "connectionstyle": "arc3,rad=0.28"}
        axes.annotate("", (1.1, 3.12), (7.3, 3.12), arrowprops=style)
        axes.text(4.2, 3.55, "next batch; kept: seed and g, on the tape", **_middle)
        axes.set(xlim=(-0.3, 8.9), ylim=(-0.05, 4.1))
        axes.axis("off")


_middle = {"ha": "center", "va": "center", "fontsize": 8.5, "style": "italic"}


def _box(corner: tuple[float, float], size: tuple[float, float], frame: dict) -> object:
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch(corner, *size, **frame)


def _draw_arrow(axes, begin: tuple[float, float], end: tuple[float, float], said: str) -> None:
    """From the edge of one box to that of the next; boxes stand side by side or one below the other."""
    (x, y), (to_x, to_y) = begin, end
    way_x, way_y = (to_x > x) - (to_x < x), (to_y > y) - (to_y < y)
    start = (x + way_x * (HALF_WIDTH + 0.12), y + way_y * (HALF_HEIGHT + 0.12))
    stop = (to_x - way_x * (HALF_WIDTH + 0.12), to_y - way_y * (HALF_HEIGHT + 0.12))
    axes.annotate("", stop, start, arrowprops={"arrowstyle": "->", "color": "0.3"})
    axes.text((start[0] + stop[0]) / 2 + 0.7 * bool(said), (start[1] + stop[1]) / 2, said, **_middle)


def draw_memory(rows: list[dict[str, str]], path: Path) -> None:
    """A bar a way: the weights, and on top of them the most that is alive in a step."""
    by_way = {row["way"]: row for row in rows}
    names = [MEMORY[way] for way in MEMORY]
    weights = [int(by_way[way]["weights_bytes"]) / 2**20 for way in MEMORY]
    rest = [int(by_way[way]["peak_bytes"]) / 2**20 for way in MEMORY]
    with figure_file(path, size=(7.5, 2.4)) as (_, axes):
        axes.barh(names, weights, color="0.8", label="weights")
        colors = [OURS if way == "zeroth_order" else OTHER for way in MEMORY]
        bars = axes.barh(names, rest, left=weights, color=colors, label="everything else, at its peak")
        axes.bar_label(bars, [f"{a + b:,.0f} MiB" for a, b in zip(weights, rest, strict=True)], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel("MiB; light: the weights")
        row = rows[0]
        axes.set_title(f"memory of a step: {row['shape']}'s shape, {row['dtype']}, {row['batch']}", fontsize=9)


def draw_speed(rows: list[dict[str, str]], path: Path) -> None:
    """A group of bars for each case in which all three ways were timed."""
    # of several runs the newest, which stands last
    seconds = {(_case(row["case"]), row["way"]): float(row["median_seconds"]) for row in rows}
    cases = [case for case, way in seconds if way == "mezo" and all((case, other) in seconds for other in SPEED)]
    with figure_file(path, size=(7.5, 0.9 + 0.65 * len(cases))) as (_, axes):
        for place, (way, name) in enumerate(SPEED.items()):
            at = [number + 0.27 * (place - 1) for number in range(len(cases))]
            color = {"floor": "0.8", "step": OURS, "mezo": OTHER}[way]
            bars = axes.barh(at, [seconds[case, way] for case in cases], height=0.25, color=color, label=name)
            axes.bar_label(bars, fmt="%.2f s", padding=3, fontsize=8)
        axes.set_yticks(range(len(cases)), cases)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.legend(fontsize=8)
        row = rows[-1]
        axes.set_xlabel(f"seconds ({row['device']}, {row['threads']} threads, {row['time'][:10]})")
        axes.set_title("time of a zeroth-order step, 16 x 48 tokens", fontsize=9)


def _case(name: str) -> str:
    """ "opt-125m, float32" of "test_step_against_floor_and_mezo[opt-125m-float32]"."""
    shape, _, dtype = name.partition("[")[2].rstrip("]").rpartition("-")
    return f"{shape}, {dtype}"


if __name__ == "__main__":
    main()
