"""Data sets from the Hugging Face hub, with the `datasets` package imported only when it is needed."""

from collections.abc import Sequence

from xgblora.errors import InputError

# where the hub keeps the parquet files that it made of a data set; `datasets` 4 runs no loading scripts any more
PARQUET_BRANCH = "refs/convert/parquet"


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

    Raises:
        InputError: the `datasets` package is missing, or the hub gives an error.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError("reading data from the hub needs the package datasets (or give --data_dir)") from None
    try:
        try:
            return load_dataset(path, name)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return load_dataset(path, name, revision=PARQUET_BRANCH)
    except Exception as error:  # the hub client raises dozens of kinds; the person needs one line
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        shown = f"{path}/{name}" if name else path
        raise InputError(f"data set {shown}: cannot be read from the hub ({reason}); or give --data_dir") from None
