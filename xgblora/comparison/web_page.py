"""`report.html`: a comparison as one file that needs nothing else, no network and no script."""

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

from xgblora.comparison import table
from xgblora.comparison.report import Report
from xgblora.comparison.runs import PlannedRun, differing_flags

NAME = "report.html"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .3em .7em; border-bottom: 1px solid #ddd }
th { text-align: left; vertical-align: bottom } td { white-space: nowrap }
th + th, td + td { text-align: right; font-variant-numeric: tabular-nums } details :is(th, td) { text-align: left }
div { overflow-x: auto } figure { margin: 1.5em 0 } img { width: 46em; max-width: 100% } summary { cursor: pointer }
"""


def page(report: Report, title: str, figures: Iterable[Path]) -> str:
    """The text of the page.

    Args:
        report: with one finished run or more.
        title: of the comparison.
        figures: PNG files, which the page takes in.
    """
    runs = [run.run for candidate in report.chosen for run in candidate.runs]
    said = [table.about(difference, report.metric) for difference in report.differences]
    parts = [
        f"<h1>{escape(title)}</h1>",
        _table(*table.results(report)),
        _lines([*table.notes(report), *said, *table.same_curves(report), *table.failures(report)]),
    ]
    if any(candidate.setting for candidate in report.candidates):
        parts += ["<h2>Settings, chosen (*) on the development set</h2>", _table(*table.settings(report))]
    parts += ["<h2>Figures</h2>", *(_figure(path) for path in figures if path.is_file())]
    parts += ["<h2>What differs between the methods</h2>", _table(*_differences(runs))]
    common = _common(runs)
    folded = _folded(f"{len(common)} flags", _table(("flag", "value"), common))
    parts += ["<h2>What is the same in all runs</h2>", folded]
    return _document(title, "\n".join(parts))


def _document(title: str, body: str) -> str:
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en">\n<head>{head}<style>{STYLE}</style></head>',
            f"<body>\n{body}\n</body>\n</html>\n",
        ]
    )


def _table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div><table>\n<tr>{head}</tr>\n{body}\n</table></div>"


def _folded(heading: str, body: str) -> str:
    return f"<details><summary>{escape(heading)}</summary>\n{body}\n</details>"


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(f"<p>{escape(line)}</p>" for line in lines if line)


def _figure(path: Path) -> str:
    """A figure, inside the page; its name says what it shows."""
    name = escape(path.stem.replace("_", " "))
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<figure><img alt="{name}" src="data:image/png;base64,{data}"></figure>'


def _differences(runs: list[PlannedRun]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row a method, a column a flag that is not the same in all."""
    flags, by_method = differing_flags(runs), {run.method.name: run for run in runs}
    rows = [(name, *(str(run.configuration.get(flag)) for flag in flags)) for name, run in by_method.items()]
    return ("method", *flags), rows


def _common(runs: list[PlannedRun]) -> list[tuple[str, str]]:
    """The flags that have one value in all runs."""
    values = {name: {str(run.configuration.get(name)) for run in runs} for name in sorted(runs[0].configuration)}
    return [(name, *of_all) for name, of_all in values.items() if len(of_all) == 1]
