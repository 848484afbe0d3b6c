"""Make docs/gpu.md, its figures and the README's lines about GPUs from the results files of `scripts/gpu_suite.py`.

    python scripts/gpu_page.py

reads `benchmarks/results/*.json`. Without one the page says which command makes one.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# for `benchmarks`, which is not installed
sys.path.insert(0, str(ROOT))
from benchmarks.gpu.page import draw, page, readme_lines, with_lines
from benchmarks.gpu.results import FORMAT
from benchmarks.results_file import FOLDER
from xgblora.atomic_file import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, help="results files (default: benchmarks/results/*.json)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where gpu.md and gpu/ go")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the file with the two marks")
    arguments = parser.parse_args()
    files = arguments.results or committed(FOLDER)
    measured = [read(file) for file in files]
    for file, results in zip(files, measured, strict=True):
        if results["rehearsal"]:
            sys.exit(f"error: {file}: of a rehearsal: its figures are a CPU's")
    figures = [f"gpu/{file.stem}.png" for file in files]
    try:
        readme = with_lines(arguments.readme.read_text(encoding="utf-8"), readme_lines(measured))
    except (OSError, ValueError) as error:
        sys.exit(f"error: --readme {arguments.readme}: {error}")
    for results, figure in zip(measured, figures, strict=True):
        draw(results, arguments.docs / figure)
    write_text(arguments.docs / "gpu.md", page(measured, figures))
    write_text(arguments.readme, readme)
    print(f"{len(measured)} results file{'' if len(measured) == 1 else 's'}: {arguments.docs / 'gpu.md'}")


def committed(folder: Path) -> list[Path]:
    """The results files of GPUs; what a rehearsal left is none."""
    return [file for file in sorted(folder.glob("*.json")) if not read(file)["rehearsal"]]


def read(file: Path) -> dict:
    """A results file; exits with one line if it is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']}, not {FORMAT}")
        missing = [name for name in ("rehearsal", "started", "commit", "stages") if name not in found]
        if missing:
            raise ValueError(f"it has no {missing[0]}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: {file}: no results file of scripts/gpu_suite.py ({error})")
    return found


if __name__ == "__main__":
    main()
