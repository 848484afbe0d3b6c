"""The figure of a run by boosting round: loss and accuracy on the development set after each merge."""

from pathlib import Path

from xgblora.figure_file import figure_file


def draw(path: Path, *, title: str, losses: list[float], accuracies: list[float], kept: int | None) -> None:
    """Write the figure to `path` (PNG).

    Args:
        title: what the run is.
        losses, accuracies: on the development set after round 0 (the base model), 1, ...; accuracies from 0 to 1.
        kept: the round whose weights were kept, marked; None where the last was.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    with figure_file(path, rows=2, size=(8, 5.5)) as (_, (upper, lower)):
        rounds = range(len(losses))
        upper.plot(rounds, accuracies, "o-", color="tab:green", markersize=4)
        upper.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
        upper.set(ylabel="accuracy, development set", title=title)
        lower.plot(rounds, losses, "o-", color="tab:orange", markersize=4)
        lower.set(xlabel="boosting round (0: the base model)", ylabel="loss, development set")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (upper, lower):
            axes.grid(alpha=0.2)
            axes.margins(x=0.02)
            if kept is not None:
                axes.axvline(kept, color="tab:gray", linewidth=1.0, linestyle="--", label=f"kept: round {kept}")
        if kept is not None:
            upper.legend(loc="lower right", framealpha=0.9, edgecolor="none", fontsize="small")
