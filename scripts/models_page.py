"""Write the end of docs/models.md: every architecture of the matrix of the tests, and what came of it.

python scripts/models_page.py
"""

import sys
import tempfile
from pathlib import Path

import transformers

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.matrix.architectures import ARCHITECTURES
from tests.matrix.checks import Row, examine

PAGE = ROOT / "docs" / "models.md"
MARK = "## Every architecture\n"
# what stands before the mark is written by hand
HEAD = """
Each architecture is built small from its configuration (2 layers of width 32, random weights) and tried: scores equal
plain forwards of one unpadded text each, steps by forwards and by backpropagation over `all-linear`, a merge, base +
ledger, the PEFT adapter loaded by PEFT, and detaching. `XGBLORA_MODELS=all pytest tests/matrix` does it again, and
`python scripts/models_page.py` writes this part of the page. transformers {version}.

`xgblora-train` tries a model in the same way before it trains: what gives other scores than a plain forward gives way
to the next slower way with a line in the log, or one line refuses.

{works} of {all} architectures work: {packed} packed, {padded} padded. {refused} are refused.

| architecture | how texts run | `all-linear` adapts | PEFT computes |
| --- | --- | --- | --- |
"""


def main() -> None:
    rows: list[Row] = []
    for kind in sorted(ARCHITECTURES):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(examine(kind, Path(folder) / "adapter"))
        print(rows[-1], flush=True)
    write(rows)


def write(rows: list[Row]) -> None:
    """Write the part of the page that is about `rows`."""
    works = [row for row in rows if not row.refused]
    packed = sum(row.scores.startswith("packed") for row in works)
    head = HEAD.format(
        version=transformers.__version__,
        works=len(works),
        all=len(rows),
        packed=packed,
        padded=len(works) - packed,
        refused=len(rows) - len(works),
    )
    by_hand = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(by_hand + MARK + head + "".join(f"{row}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
