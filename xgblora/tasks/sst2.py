"""SST-2: is a film review positive? (Socher et al., 2013; GLUE.) Prompt and label words are MeZO's.

Local files are GLUE's: `train.tsv` and `dev.tsv` with the columns `sentence` and `label` (0 or 1).
"""

import csv
from collections.abc import Iterable
from pathlib import Path

from xgblora.errors import InputError
from xgblora.tasks.hub import load_from_hub
from xgblora.tasks.sample import Sample, Splits

LABEL_WORDS = ("terrible", "great")
FILES = {"train": "train.tsv", "valid": "dev.tsv"}


def load(data_dir: str | None) -> Splits:
    """Both splits, from `data_dir` or, if it is None, from the hub (nyu-mll/glue, sst2).

    Raises:
        InputError: a file is missing or a row cannot be used; the hub cannot be reached.
    """
    if data_dir is None:
        data = load_from_hub("nyu-mll/glue", "sst2")
        return Splits(
            *(
                [to_sample(row, f"{split} row {index}") for index, row in enumerate(data[split])]
                for split in ("train", "validation")
            )
        )
    folder = Path(data_dir)
    return Splits(*(_read_tsv(folder, FILES[split]) for split in ("train", "valid")))


def to_sample(row: dict, origin: str) -> Sample:
    """The sample of a row with `sentence` and `label`.

    Raises:
        InputError: the sentence is missing or empty, or the label is not 0 or 1.
    """
    sentence = (row.get("sentence") or "").strip()
    if not sentence:
        raise InputError(f"{origin}: the sentence is empty")
    if str(row.get("label")) not in ("0", "1"):
        raise InputError(f"{origin}: label={row.get('label')}: must be 0 or 1")
    prompt = f"{sentence} It was"
    return Sample(prompt, tuple(f"{prompt} {word}" for word in LABEL_WORDS), int(row["label"]), origin)


def _read_tsv(folder: Path, name: str) -> list[Sample]:
    path = folder / name
    if not path.is_file():
        raise InputError(f"data_dir={folder}: there is no {name} in it; SST2 needs {' and '.join(FILES.values())}")
    try:
        # a byte order mark, which spreadsheets write, is no part of the first column's name
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _samples(file, path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _samples(lines: Iterable[str], path: Path) -> list[Sample]:
    # reviews hold single quotation marks, so a quote is a character like any other
    rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = {"sentence", "label"} - set(rows.fieldnames or ())
    if missing:
        raise InputError(f"{path}: the first line must name the columns sentence and label")
    # empty lines are passed over, and counted
    samples = [to_sample(row, f"{path} line {rows.line_num}") for row in rows]
    if not samples:
        raise InputError(f"{path}: there are no rows in it")
    return samples
