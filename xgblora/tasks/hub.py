"""Data sets from the Hugging Face hub, with the `datasets` package imported only when it is needed."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from xgblora.errors import InputError
from xgblora.hub_downloads import reason, refuse_damaged

# where the hub keeps the parquet files that it made of a data set; `datasets` 4 runs no loading scripts any more
PARQUET_BRANCH = "refs/convert/parquet"
# what `datasets` says of a data set that has a script, and, once some of it is in the cache, of a part that is not
_OF_A_SCRIPT = ("scripts are no longer supported", "Couldn't find cache for")


class HubRows(Sequence):
    """The rows of one split with their origins, each read when it is asked for."""

    def __init__(self, rows: Sequence[dict], split: str):
        self._rows, self._split = rows, split

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[dict, str]:
        return self._rows[index], f"{self._split} row {index}"


def load_from_hub(path: str, name: str | None):
    """`datasets.load_dataset(path, name)`: a mapping of splits, each a sequence of rows.

    A data set that has a loading script is read as the parquet that the hub made of it.

    Raises:
        InputError: the `datasets` package is missing, or the hub gives an error, or another file than it announced.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError("reading data from the hub needs the package datasets (or give --data_dir)") from None
    what, begun = f"data set {path}/{name}" if name else f"data set {path}", time.time()
    try:
        try:
            data = load_dataset(path, name)
        except (RuntimeError, ValueError) as error:
            if not any(words in str(error) for words in _OF_A_SCRIPT):
                raise
            # there a configuration is a folder
            data = load_dataset(path, data_dir=name, revision=PARQUET_BRANCH)
    except Exception as error:  # the hub client raises dozens of kinds; the person needs one line
        refuse_damaged("dataset", path, what, begun)
        raise InputError(f"{what}: cannot be read from the hub ({reason(error)}); or give --data_dir") from None
    try:
        refuse_damaged("dataset", path, what, begun)
    except InputError:
        # `datasets` would read the tables that it made of the damaged files
        _forget(data)
        raise
    return data


def _forget(data: Mapping) -> None:
    """Remove the tables that `datasets` made of the files of the hub."""
    for split in data.values():
        for table in split.cache_files:
            shutil.rmtree(Path(table["filename"]).parent, ignore_errors=True)
