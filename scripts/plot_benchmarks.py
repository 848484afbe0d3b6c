"""Draw a results file of the benchmarks: each case against its floor and its peers.

    python scripts/plot_benchmarks.py benchmarks/results/<device>.csv [--output FILE.png]

takes the newest rows of each case. A bar is the time of ours over the time of what it is compared with: left of 1 ours
is faster.
"""

import argparse
import csv
import sys
from pathlib import Path

from xgblora.atomic_file import replacing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results file, benchmarks/results/<device>.csv")
    parser.add_argument("--output", type=Path, help="figure (default: beside the results file)")
    arguments = parser.parse_args()
    if not arguments.results.is_file():
        sys.exit(f"error: results={arguments.results}: there is no such file; `pytest benchmarks/` writes one")
    with open(arguments.results, encoding="utf-8", newline="") as file:
        rows = newest(list(csv.DictReader(file)))
    if not rows:
        sys.exit(f"error: results={arguments.results}: there is no ratio in it")
    output = arguments.output or arguments.results.with_suffix(".png")
    draw(rows, output)
    print(f"figure: {output}")


def newest(rows: list[dict]) -> list[dict]:
    """The last row of each (case, way) that has a ratio, in the order of the file."""
    return list({(row["case"], row["way"]): row for row in rows if row["ours_over_way"]}.values())


def draw(rows: list[dict], path: Path) -> None:
    """Draw `rows` as bars, one a case and way, on a logarithmic scale with a line at 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    names = [f"{row['case'].removeprefix('test_')}  over  {row['way']}" for row in rows]
    ratios = [float(row["ours_over_way"]) for row in rows]
    figure, axes = pyplot.subplots(figsize=(10, 0.9 + 0.28 * len(rows)), layout="constrained")
    colors = ["tab:green" if ratio <= 1.0 else "tab:gray" for ratio in ratios]
    # from 1, because a logarithmic axis has no zero to start from
    bars = axes.barh(names, [ratio - 1.0 for ratio in ratios], left=1.0, color=colors)
    axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize=8)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15, y=0.01)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("time of ours / time of the other (medians of one run)")
    last = rows[-1]
    where = f"{last['device']}, {last['threads']} thread(s), torch {last['torch']}"
    axes.set_title(f"{where}, {last['time'][:10]}", fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    pyplot.close(figure)


if __name__ == "__main__":
    main()
