"""Curves in a terminal."""

import math

MARKS = "o+x*#@%&"
SHARED = "="


def ascii_plot(curves: dict[str, list[float]], *, width: int = 72, height: int = 12) -> list[str]:
    """The lines of a plot of `curves` over their index, each with a mark of its own, '=' where they meet.

    Args:
        curves: name -> values, one a step from step 1; what is not finite is left out.
        width, height: of the plotting area, in characters.
    """
    finite = [value for values in curves.values() for value in values if math.isfinite(value)]
    if not finite:
        return ["(nothing to plot)"]
    low, high = min(finite), max(finite)
    longest = max(map(len, curves.values()))
    cells: dict[tuple[int, int], str] = {}
    marks = {name: MARKS[index % len(MARKS)] for index, name in enumerate(curves)}
    for name, values in curves.items():
        for cell in _cells(values, longest, low, high, width, height):
            cells[cell] = SHARED if cell in cells else marks[name]
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    margin = max(map(len, labels.values()))
    lines = [
        f"{labels.get(row, ''):>{margin}} |"
        + "".join(cells.get((row, column), " ") for column in range(width)).rstrip()
        for row in range(height)
    ]
    last = str(longest)
    axis = [" " * margin + " +" + "-" * width, " " * (margin + 2) + "1" + last.rjust(width - 1)]
    shared = f"   {SHARED} several" if SHARED in cells.values() else ""
    return [*lines, *axis, " " * (margin + 2) + "   ".join(f"{mark} {name}" for name, mark in marks.items()) + shared]


def _cells(
    values: list[float], longest: int, low: float, high: float, width: int, height: int
) -> list[tuple[int, int]]:
    """Row and column of each column's mean value."""
    columns: dict[int, list[float]] = {}
    for index, value in enumerate(values):
        if math.isfinite(value):
            columns.setdefault(index * width // longest, []).append(value)
    height_of = (height - 1) / (high - low) if high > low else 0.0
    return [(height - 1 - round((sum(of) / len(of) - low) * height_of), column) for column, of in columns.items()]
