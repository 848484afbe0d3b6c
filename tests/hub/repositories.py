"""What the hub on loopback holds: a tiny OPT under its big brother's name, and a few rows of every data set."""

import io
from pathlib import Path

from tests.fixtures.texts import REVIEW_SENTENCES
from tests.hub.server import Repository
from xgblora.tasks import TASKS
from xgblora.tasks.hub import PARQUET_BRANCH

MODEL = "facebook/opt-350m"
# on the hub's main branch these are loading scripts, which nobody runs any more
OF_SCRIPTS = {"aps/super_glue"}
# what the README's command draws of SST-2's training split
SST2_ROWS = 1500


def rows_of(task: str, count: int) -> list[dict]:
    """So many rows with the columns that the task's data set has on the hub."""
    texts = [f"{sentence} {number}" for number in range(count) for sentence, _ in REVIEW_SENTENCES][:count]
    columns = _COLUMNS[task]
    return [
        {name: make(text, number) if callable(make) else make for name, make in columns.items()}
        for number, text in enumerate(texts)
    ]


_PAIR = {"premise": lambda text, number: text, "hypothesis": "a film"}
_LABEL = {"label": lambda text, number: number % 2, "idx": lambda text, number: number}
_COLUMNS: dict[str, dict] = {
    "SST2": {"sentence": lambda text, number: text, **_LABEL},
    "RTE": {**_PAIR, **_LABEL},
    "CB": {**_PAIR, "label": lambda text, number: number % 3},
    "BoolQ": {
        "question": "is it good",
        "passage": lambda text, number: text,
        "answer": lambda text, number: number % 2 == 0,
    },
    "WSC": {
        "text": lambda text, number: f"Anna saw {text} and she slept",
        "span1_text": "Anna",
        "span2_text": "she",
        "span1_index": 0,
        "span2_index": lambda text, number: text.count(" ") + 4,
        **_LABEL,
    },
    "WIC": {"word": "film", "sentence1": lambda text, number: text, "sentence2": "the film ends", **_LABEL},
    "MultiRC": {"paragraph": lambda text, number: text, "question": "what ?", "answer": "a film", **_LABEL},
    "Copa": {
        "premise": lambda text, number: text,
        "choice1": "It rained.",
        "choice2": "It ended.",
        "question": lambda text, number: ("cause", "effect")[number % 2],
        **_LABEL,
    },
    "ReCoRD": {
        "passage": lambda text, number: text,
        "query": "@placeholder slept",
        "entities": ["Anna", "Bob"],
        "answers": ["Bob"],
    },
    "SQuAD": {
        "title": "Films",
        "context": lambda text, number: text,
        "question": "what ?",
        "answers": {"text": ["a film"], "answer_start": [0]},
    },
    "DROP": {
        "passage": lambda text, number: text,
        "question": "how many ?",
        "answers_spans": {"spans": ["2"], "types": ["number"]},
    },
}


def data_sets() -> list[Repository]:
    """The data sets of the built-in tasks, each with its configurations as the hub has them."""
    of_data_set: dict[str, dict[str | None, str]] = {}
    for name, task in TASKS.items():
        if task.hub is not None:
            path, configuration = task.hub
            of_data_set.setdefault(path, {})[configuration] = name
    return [_data_set(path, tasks) for path, tasks in of_data_set.items()]


def _data_set(path: str, tasks: dict[str | None, str]) -> Repository:
    counts = {"train": 16, "validation": 8}
    if path in OF_SCRIPTS:
        script = {"README.md": b"# a card\n", f"{path.split('/')[1]}.py": b"raise SystemExit('a script was run')\n"}
        exported = {
            f"{configuration}/{split}/0000.parquet": parquet(rows_of(task, count))
            for configuration, task in tasks.items()
            for split, count in counts.items()
        }
        return Repository("datasets", path, {"main": script, PARQUET_BRANCH: exported})
    files = {
        f"{configuration or 'data'}/{split}-00000-of-00001.parquet": parquet(
            rows_of(task, SST2_ROWS if (task, split) == ("SST2", "train") else count)
        )
        for configuration, task in tasks.items()
        for split, count in counts.items()
    }
    return Repository("datasets", path, {"main": {"README.md": _card(list(tasks)), **files}})


def _card(configurations: list[str | None]) -> bytes:
    lines = ["---", "configs:"]
    for name in configurations:
        lines += [f"- config_name: {name or 'default'}", "  data_files:"]
        for split in ("train", "validation"):
            lines += [f"  - split: {split}", f"    path: {name or 'data'}/{split}-*"]
    return "\n".join([*lines, "---", "# a card", ""]).encode()


def parquet(rows: list[dict]) -> bytes:
    """The bytes of a parquet file of these rows."""
    import pyarrow
    from pyarrow.parquet import write_table

    file = io.BytesIO()
    write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def model(name: str, folder: Path, **settings: bool) -> Repository:
    """The model in `folder` as the repository `name`."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return Repository("models", name, {"main": files}, **settings)
