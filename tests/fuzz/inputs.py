"""What people may type: command lines and files of flags from the flags' own types, and data files with mistakes."""

import json
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

# of other programs and machines: the network, several processes, GPUs; docs/reliability.md has a table of them
LEFT_OUT = {"help", "help_all", "output_dir", "output_root", "model_name", "data_dir", "use_cpu", "dry_run", "run"}
_WORDS = ["", "x", "0", "-1", "nan", "inf", "1e400", "None", "true", "[]", "{}", "a b", "é", "\N{GRINNING FACE}", "-"]
_WORDS += [
    "\udcff",
    "../x",
    "/",
    "~",
    ".",
    "a\nb",
    "--seed",
    "q_proj",
    "(",
    ".*",
    "all",
    "last",
    "steps",
    "epoch",
    "no",
]
WORDS = st.sampled_from([*_WORDS, '{"a": 1}'])
NUMBERS = st.one_of(
    st.sampled_from(
        ["0", "1", "-1", "2", "4", "16", "0.5", "1e-3", "1e9", "-0.0", str(1 << 31), str(1 << 63), str(1 << 70)]
    ),
    st.integers(-5, 50).map(str),
    st.floats(allow_nan=True).map(repr),
)


def values_of(action) -> st.SearchStrategy[list[str]]:
    """The words behind a flag: mostly of its type, now and then of none."""
    if action.nargs == 0:
        return st.just([])
    kinds = [WORDS, NUMBERS]
    if action.choices:
        kinds += [st.sampled_from(list(map(str, action.choices)))] * 6
    elif action.type in (int, float):
        kinds += [NUMBERS] * 4
    elif getattr(action.type, "__name__", "") == "string_to_bool":
        kinds += [st.sampled_from(["true", "false", "yes", "no", "1", "0"])] * 4
    one = st.one_of(*kinds)
    return st.lists(one, max_size=3) if action.nargs in ("+", "*") else one.map(lambda word: [word])


def flags_of(parser) -> dict[str, st.SearchStrategy[list[str]]]:
    """For each flag of a parser, the words that may stand behind it."""
    return {action.dest: values_of(action) for action in parser._actions if action.dest not in LEFT_OUT}


@st.composite
def command_lines(draw, flags: dict[str, st.SearchStrategy[list[str]]], known: tuple[str, ...] = ()) -> list[str]:
    """Up to five flags with words behind them, in either spelling; some lines have a word that is none.

    Args:
        flags: as of `flags_of`.
        known: flags that are drawn as often as all others together.
    """
    names = st.sampled_from(sorted(flags))
    names = st.one_of(names, st.sampled_from(known)) if known else names
    words = []
    for name in draw(st.lists(names, min_size=1, max_size=5)):
        values = draw(flags[name])
        joined = len(values) == 1 and draw(st.booleans())
        words += [f"--{name}={values[0]}"] if joined else [f"--{name}", *values]
    return words + draw(st.sampled_from([[]] * 9 + [["word"], ["--nothing"], ["--"]]))


@st.composite
def flag_files(draw, flags: dict[str, st.SearchStrategy[list[str]]], known: tuple[str, ...] = ()) -> str:
    """The text of a YAML file of flags, sometimes with a character changed."""
    line = draw(command_lines(flags, known))
    names = [word.split("=")[0].lstrip("-") for word in line if word.startswith("--")]
    plain = st.one_of(WORDS, NUMBERS, st.integers(), st.booleans(), st.none(), st.lists(WORDS, max_size=2))
    entries = {name: draw(plain) for name in names}
    text = draw(st.sampled_from([json.dumps(entries), "\n".join(f"{k}: {_scalar(v)}" for k, v in entries.items())]))
    return draw(damaged_texts(text)) if draw(st.integers(0, 3)) == 0 else text


def _scalar(value: object) -> str:
    return value if isinstance(value, str) and value.isalnum() else json.dumps(value)


@st.composite
def damaged_texts(draw, text: str) -> str:
    """`text` with up to three characters changed, left out or put in."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text)))
        new = draw(
            st.sampled_from(["", "\0", "\t", "\n", '"', "{", "}", "[", ":", "&a", "*a", "!", "%", "\\", "é", "\ud83d"])
        )
        text = text[:place] + new + text[place + draw(st.integers(0, 2)) :]
    return text


@st.composite
def damaged_bytes(draw, content: bytes) -> bytes:
    """A file of which some bytes were changed, cut off, or are there twice."""
    for _ in range(draw(st.integers(1, 4))):
        place, length = draw(st.integers(0, len(content))), draw(st.integers(0, 8))
        piece = draw(
            st.one_of(
                st.binary(max_size=4),
                st.sampled_from(
                    [b"", b'"', b"\t", b"\n", b"\r", b"\0", b"\xff", b"\\ud83d", b"{", b"[", b",", b"\xef\xbb\xbf"]
                ),
            )
        )
        content = content[:place] + piece + content[place + length :]
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 5)) == 0 else content


def data_files(rows: list[dict]) -> dict[str, Callable[[Path], None]]:
    """For each format, a function that writes `rows` to a path."""
    import pyarrow
    from pyarrow import parquet

    columns = list(rows[0])

    def table(delimiter: str) -> Callable[[Path], None]:
        lines = [delimiter.join(columns), *(delimiter.join(map(str, row.values())) for row in rows)]
        return lambda path: path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    return {
        "tsv": table("\t"),
        "csv": table(","),
        "jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"),
        "json": lambda path: path.write_text(json.dumps(rows), encoding="utf-8"),
        "parquet": lambda path: parquet.write_table(pyarrow.Table.from_pylist(rows), path),
    }
