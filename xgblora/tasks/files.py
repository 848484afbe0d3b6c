"""Local data: the files of a folder by their published names, and the rows in them.

A row is a dict, and comes with its origin ("train.tsv line 7") for error messages.
"""

import csv
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from xgblora.errors import InputError
from xgblora.spelling import one_line

if TYPE_CHECKING:
    import pyarrow.parquet

logger = logging.getLogger("xgblora")

Row = tuple[dict, str]

# words of a file's name that say which split it holds: train.tsv, dev-v1.1.json, validation-00000-of-00001.parquet
SPLIT_WORDS = {
    "train": {"train", "training"},
    "valid": {"val", "valid", "validation", "dev", "development"},
    "test": {"test"},
}
SHARD = re.compile(r"-\d{5}-of-\d{5}$")
# the csv module's own limit, 131,072 characters, is less than a long document has; this is all that a C long holds
_LONGEST_FIELD = (1 << 31) - 1
# bytes and rows of a parquet file, unpacked; ReCoRD, the largest of the built-in tasks, has 200 MB and 100,000
_LARGEST_TABLE, _MOST_ROWS = 1 << 34, 1 << 27
# half of a character beyond the first 65,536, which JSON can spell and no text can hold
_HALF = re.compile("[\ud800-\udfff]")
_SPELLED_HALF = re.compile(
    r"\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f][0-9a-f]{2})|(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f][0-9a-f]{2}", re.IGNORECASE
)


def find_splits(folder: Path) -> dict[str, list[Path]]:
    """The data files of `folder` by split, "train" and "valid"; a split may be in several numbered shards.

    Where there is one split only, or one file whose name says nothing, there is one entry.

    Raises:
        InputError: there is no data file, or several that could be the same split.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in READERS and path.is_file())
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(_split_of(path), []).append(path)
    wanted = {split: by_split[split] for split in ("train", "valid") if split in by_split}
    if not wanted and "" in by_split:
        wanted = {"train": by_split[""]}
    if not wanted:
        raise InputError(
            f"data_dir={folder}: there are no data files in it, such as train.tsv and dev.tsv "
            f"(also {', '.join(sorted(set(READERS) - {'.tsv'}))})"
        )
    for split, paths in wanted.items():
        if len({SHARD.sub("", path.stem) + path.suffix for path in paths}) > 1:
            names = ", ".join(path.name for path in paths)
            raise InputError(f"data_dir={folder}: which of {names} is the {split} split? Leave one of them there")
    return wanted


def read_rows(path: Path) -> list[Row]:
    """The rows of a file: lines of tsv, csv or jsonl, entries of a json list, rows of parquet.

    A json file that holds one object is one row, for the task to take apart.

    Raises:
        InputError: the file is missing, is no UTF-8, is broken, or has no rows.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    if path.suffix.lower() not in READERS:
        raise InputError(f"{path}: data files end in {', '.join(READERS)}")
    try:
        rows = list(READERS[path.suffix.lower()](path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not rows:
        raise InputError(f"{path}: there are no rows in it")
    return rows


def _split_of(path: Path) -> str:
    words = set(re.split(r"[^a-z]+", path.stem.lower()))
    return next((split for split, names in SPLIT_WORDS.items() if words & names), "")


def _read_tsv(path: Path) -> Iterator[Row]:
    """A quote is a character like any other, unless the header is quoted: sentences of GLUE hold single ones."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        names = file.readline().rstrip("\r\n").split("\t")
    if all(map(_is_quoted, names)):
        yield from _read_table(path, delimiter="\t", strict=True)
        return
    quoted = 0
    for row, origin in _read_table(path, delimiter="\t", quoting=csv.QUOTE_NONE):
        quoted += any(map(_is_quoted, row.values()))
        yield row, origin
    if quoted:
        logger.warning(
            "%s: in %d rows a field stands in quotation marks, which are taken as part of the text, as in GLUE; if "
            "they are not, quote the names in the first line too, or write .csv or .jsonl",
            path,
            quoted,
        )


def _is_quoted(field: str) -> bool:
    """Whether `field` is what a writer of quoted tables makes of a field."""
    inside = field[1:-1]
    return len(field) >= 2 and field[0] == field[-1] == '"' and '"' not in inside.replace('""', "")


def _read_csv(path: Path) -> Iterator[Row]:
    return _read_table(path, delimiter=",", strict=True)


def _read_table(path: Path, **dialect) -> Iterator[Row]:
    # a byte order mark, which spreadsheets write, is no part of the first column's name
    with open(path, encoding="utf-8-sig", newline="") as file, _fields_of_any_length():
        lines = csv.reader(file, **dialect)
        try:
            columns = next(lines, [])
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != len(columns):
                    raise InputError(
                        f"{path} line {lines.line_num}: the first line names {len(columns)} columns, "
                        f"and here are {len(cells)}"
                    )
                yield dict(zip(columns, cells, strict=True)), f"{path} line {lines.line_num}"
        except csv.Error as error:
            raise InputError(f"{path} line {lines.line_num}: is no table ({error})") from None


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_jsonl(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _object(_parsed(line.rstrip(), path, number), f"{path} line {number}")


def _read_json(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    first_line = text.lstrip().partition("\n")[0]
    if first_line.startswith("{") and first_line.rstrip().endswith("}") and text.strip() != first_line.strip():
        # lines of JSON under a name without the l
        yield from _read_jsonl(path)
        return
    content = _parsed(text, path, 1)
    if not isinstance(content, list):
        yield _object(content, str(path))
        return
    for number, entry in enumerate(content, start=1):
        yield _object(entry, f"{path} entry {number}")


def _parsed(text: str, path: Path, first_line: int) -> object:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(f"{path} line {line}: is no JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        # a number of more than 4,300 digits, brackets without end
        raise InputError(f"{path} line {first_line}: cannot be read as JSON ({one_line(error)})") from None
    if "\\ud" in text.lower():
        _refuse_halves(text, content, path, first_line)
    return content


def _refuse_halves(text: str, content: object, path: Path, first_line: int) -> None:
    """Raise InputError if a text in `content` holds half of a surrogate pair, which is no character."""
    if _HALF.search(json.dumps(content, ensure_ascii=False)):
        spelled = _SPELLED_HALF.search(text)
        line = first_line + text.count("\n", 0, spelled.start())
        raise InputError(
            f"{path} line {line}: {spelled[0]} is half of a surrogate pair, and no character without the other half"
        )


def _object(entry: object, origin: str) -> Row:
    if not isinstance(entry, dict):
        raise InputError(f'{origin}: must be an object, {{"column": value, ...}}')
    return entry, origin


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        _refuse_large(path, pyarrow.parquet.read_metadata(path))
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise InputError(f"{path}: is no parquet file ({one_line(error, limit=200)})") from None
    for number, row in enumerate(rows, start=1):
        yield row, f"{path} row {number}"


def _refuse_large(path: Path, metadata: "pyarrow.parquet.FileMetaData") -> None:
    """Raise InputError before a file of a few bytes takes all memory: repeated values take no room in parquet."""
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if size > _LARGEST_TABLE or metadata.num_rows > _MOST_ROWS:
        raise InputError(
            f"{path}: unpacks to {size} bytes and {metadata.num_rows} rows; {_LARGEST_TABLE} and {_MOST_ROWS} are read"
        )


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
