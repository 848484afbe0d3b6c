"""A matplotlib figure that becomes a file: set up without a display, written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xgblora.atomic_file import replacing


@contextmanager
def figure_file(
    path: Path,
    rows: int = 1,
    *,
    size: tuple[float, float],
    dpi: int = 150,
    pdf: bool = False,
    share_x: bool = True,
    height_ratios: list[float] | None = None,
) -> Iterator[tuple]:
    """Yield a figure and its axes (an array of them if there are several); the end of the block writes it.

    Args:
        path: of the PNG.
        rows: axes one above the other.
        size: width and height in inches.
        dpi: pixels an inch.
        pdf: whether it is written beside `path` as PDF too.
        share_x: whether the axes have the same x-axis.
        height_ratios: of the axes; None makes them equally high.
    """
    # importing it takes most of a second, which a run that draws nothing does without
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, figsize=size, sharex=share_x, height_ratios=height_ratios, layout="constrained"
    )
    try:
        yield figure, axes
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=dpi, format="png")
        if pdf:
            with replacing(path.with_suffix(".pdf")) as temporary:
                figure.savefig(temporary, format="pdf")
    finally:
        pyplot.close(figure)
