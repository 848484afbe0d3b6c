"""Data sets from the Hugging Face hub, with the `datasets` package imported only when it is needed."""

from xgblora.errors import InputError


def load_from_hub(path: str, name: str):
    """`datasets.load_dataset(path, name)`: a mapping of splits, each an iterable of rows.

    Raises:
        InputError: the `datasets` package is missing, or the hub gives an error.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError("reading data from the hub needs the package datasets (or give --data_dir)") from None
    try:
        return load_dataset(path, name)
    except Exception as error:  # the hub client raises dozens of kinds; the person needs one line
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"data set {path}/{name}: cannot be read from the hub ({reason}); or give --data_dir"
        ) from None
