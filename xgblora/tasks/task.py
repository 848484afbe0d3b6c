"""A task: where its rows come from, how a row becomes a sample, and how answers are measured."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xgblora.errors import InputError
from xgblora.tasks.files import Row, find_splits, read_rows
from xgblora.tasks.hub import HubRows, load_from_hub
from xgblora.tasks.row import text_of
from xgblora.tasks.sample import Sample, Splits

logger = logging.getLogger("xgblora")

HELD_OUT_SHARE = 0.2


def one_row(row: dict, origin: str) -> Iterable[Row]:
    """What most published files need to become rows of the hub's columns: nothing."""
    yield row, origin


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: its name on the command line and in the names of folders.
        to_sample: the sample of a row with the hub's columns, given the row's origin.
        hub: path and configuration of the data set on the hub.
        files: the data files of each split, for a task that brings its own.
        rows_of: the rows with the hub's columns in one record of the published files.
        together: rows with the same value in this column are never parted between training and held-out samples.
        generation: the answer is generated; a sample then has `answers` and the right one as its only candidate.
        metrics: the names of its metrics, the main one first.
        separator: what stands between demonstrations.
    """

    name: str
    to_sample: Callable[[dict, str], Sample]
    hub: tuple[str, str | None] | None = None
    files: Mapping[str, list[Path]] | None = None
    rows_of: Callable[[dict, str], Iterable[Row]] = one_row
    together: str | None = None
    generation: bool = False
    metrics: tuple[str, ...] = ("accuracy",)
    separator: str = "\n\n"

    def load(self, data_dir: str | None) -> Splits:
        """Its splits: from the files in `data_dir`, else from its own files, else from the hub.

        In `data_dir` those that it names are taken; where none of them is there, those that are called like splits.
        Local rows are all checked here. Where there is one split only, a fifth of it is held out: see `hold_out`.

        Raises:
            InputError: data are missing, or a row cannot be used.
        """
        files = self.files if data_dir is None else self._files_in(Path(data_dir))
        if files is None:
            return self._from_hub()
        rows = {split: self._rows(paths) for split, paths in files.items()}
        # before a part is held out, so that a file of another form is not taken for one that has too little
        for part in rows.values():
            Samples(part, self.to_sample).check()
        if len(rows) == 1:
            (split,) = rows
            place = ", ".join(str(path) for path in files[split])
            rows = hold_out(rows[split], self.together, place)
        return Splits(*(Samples(rows[split], self.to_sample) for split in ("train", "valid")))

    def _files_in(self, folder: Path) -> Mapping[str, list[Path]]:
        named = {split: [folder / path.name for path in paths] for split, paths in (self.files or {}).items()}
        files = [path for paths in named.values() for path in paths]
        there = [path.name for path in files if path.is_file()]
        missing = [path.name for path in files if not path.is_file()]
        if there and missing:
            # to hold out a part of the other one, or to take what is called like it, would change what is measured
            raise InputError(
                f"data_dir={folder}: has {', '.join(there)} and not {', '.join(missing)}, which task {self.name} names "
                "too; put it there, or change `data` in the task's file"
            )
        return named if there else find_splits(folder)

    def _rows(self, paths: list[Path]) -> list[Row]:
        records = [record for path in paths for record in read_rows(path)]
        return [row for record, origin in records for row in self.rows_of(record, origin)]

    def _from_hub(self) -> Splits:
        if self.hub is None:
            raise InputError(f"task {self.name}: names no data; give --data_dir")
        data = load_from_hub(*self.hub)
        return Splits(*(Samples(HubRows(data[split], split), self.to_sample) for split in ("train", "validation")))


class Samples(Sequence[Sample]):
    """The samples of rows, each made when it is asked for: all of ReCoRD's candidates at once would fill gigabytes."""

    def __init__(self, rows: Sequence[Row], to_sample: Callable[[dict, str], Sample]):
        self._rows, self._to_sample = rows, to_sample

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self._to_sample(*self._rows[index])

    def check(self) -> None:
        """Raise InputError if a row makes no sample."""
        for row in self._rows:
            self._to_sample(*row)


def hold_out(rows: list[Row], together: str | None, place: str) -> dict[str, list[Row]]:
    """Rows to train on and rows to hold out: a fifth of the groups, the same ones each time, in the order of the file.

    Rows with the same value in the column `together` (an article, a passage) are a group; without it each row is one.

    Raises:
        InputError: there are fewer than two groups.
    """
    keys = [
        str(number) if together is None else text_of(row, together, origin) for number, (row, origin) in enumerate(rows)
    ]
    groups = list(dict.fromkeys(keys))
    if len(groups) < 2:
        raise InputError(f"{place}: is the only split, and has too little to hold out a part of it")
    order = np.random.RandomState(0).permutation(len(groups))
    held_out = {groups[index] for index in order[: max(1, round(HELD_OUT_SHARE * len(groups)))]}
    parts = {
        "train": [row for key, row in zip(keys, rows, strict=True) if key not in held_out],
        "valid": [row for key, row in zip(keys, rows, strict=True) if key in held_out],
    }
    logger.info(
        "%s: is the only split; %d of its %d examples are held out%s",
        place,
        len(parts["valid"]),
        len(rows),
        f", whole by {together}" if together else "",
    )
    return parts
