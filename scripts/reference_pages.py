"""Make the pages of docs/reference that follow from the code: Python, flags and environment variables.

    python scripts/reference_pages.py

writes api.md from the docstrings of every public name, flags.md from the parsers of the commands, and environment.md
from `VARIABLES` here and in the backends. A test compares the pages with what this makes.
"""

import argparse
import inspect
import re
from pathlib import Path

import xgblora
from xgblora import ops
from xgblora.atomic_file import write_text
from xgblora.cli import compare, export, replay, train
from xgblora.cli.flags import FlagParser

ROOT = Path(__file__).parent.parent
MADE = "Made by `scripts/reference_pages.py`; change the code, not this page.\n"
# names of types without their modules
MODULES = r"\bxgblora\.(\w+\.)+|\btorch\.(_tensor|nn\.modules\.module)\.|\btyping\.|collections\.abc\."
FLAG_TABLE = ("flag", "default", "what it says")
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
# what changes how xgblora runs or is built, and what it may be
VARIABLES = {
    "XGBLORA_BACKEND": "Which backend runs the operations: auto (default), eager, triton, cuda or host.",
    "XGBLORA_STRICT": "1: an operation that would fall back to another backend is an error.",
    "TRITON_INTERPRET": "1: Triton kernels run in its interpreter, on a CPU; for tests.",
    "OMP_NUM_THREADS": "Threads of torch and of the host extension.",
    "MALLOC_TRIM_THRESHOLD_": "If set, `xgblora-train` leaves glibc's way with freed memory as it is.",
    "MALLOC_MMAP_THRESHOLD_": "Likewise.",
    "GLIBC_TUNABLES": "Likewise.",
    "XGBLORA_BUILD_CUDA": "At installation: 1 insists on the CUDA extension, 0 leaves it out, auto looks for nvcc.",
    "XGBLORA_BUILD_HOST": "At installation: the same for the host extension and a C++ compiler.",
    "XGBLORA_CUDA_ARCHS": "At installation: architectures to compile for, such as 80;90.",
    "CUDA_HOME": "At installation: where nvcc is, if not on the path.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "reference", help="folder of the pages")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        write_text(folder / name, text)


def pages() -> dict[str, str]:
    """The pages by the names of their files."""
    return {"api.md": api_page(), "flags.md": flags_page(), "environment.md": environment_page()}


def public_names() -> dict[str, object]:
    """Every public name -> what it is: a function or a class."""
    names = {f"xgblora.{name}": getattr(xgblora, name) for name in xgblora.__all__ if name != "ops"}
    return {**names, **{f"xgblora.ops.{name}": getattr(ops, name) for name in ops.__all__}}


def members(cls: type) -> dict[str, object]:
    """The public methods that a class defines itself and says something of, by name."""
    found = {}
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            found[name] = function
    return found


def api_page() -> str:
    parts = ["# Python", MADE]
    for name, value in public_names().items():
        parts += [f"## {name}", *_described(name, value)]
        if inspect.isclass(value):
            for member, function in members(value).items():
                parts += [f"### {name.rpartition('.')[2]}.{member}", *_described(member, function)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _described(name: str, value: object) -> list[str]:
    # of a class its own words, not those of what it inherits from
    text = inspect.cleandoc(value.__doc__)
    if name == "xgblora.XGBLoRAArguments":
        return [text, "Its arguments are the flags of `xgblora-train`, see [flags.md](flags.md)."]
    if inspect.isclass(value) and issubclass(value, Exception):
        return [text]
    signature = re.sub(r"<object object at \w+>|<factory>", "...", str(inspect.signature(value)))
    signature = re.sub(
        r"\bxgblora\.(\w+\.)+|\btorch\.(_tensor|nn\.modules\.module)\.|\btyping\.|collections\.abc\.", "", signature
    )
    return [f"```text\n{name}{signature.replace(chr(39), '')}\n```", as_markdown(text)]


def as_markdown(docstring: str) -> str:
    """A docstring with its sections as lists."""
    lines, section = [], ""
    for line in docstring.splitlines():
        indent = len(line) - len(line.lstrip())
        if not indent and line.rstrip(":") in SECTIONS and line.endswith(":"):
            section = line.rstrip(":")
            lines += [f"**{section}**", ""]
        elif section and indent == 4:
            entry, colon, text = line.strip().partition(": ")
            lines.append(f"- `{entry}`: {text}" if colon and section != "Returns" else f"- {line.strip()}")
        elif section and indent > 4:
            lines.append(f"  {line.strip()}")
        else:
            section = section if not line else ""
            lines.append(line)
    return "\n".join(lines)


def flags_page() -> str:
    shown = train.SHOWN_FLAGS - {"help", "help_all"}
    of_training, of_comparison = train.build_parser(show_all=True), FlagParser(compare.CompareArguments)
    of_result = {
        "xgblora-export": FlagParser((export.ExportArguments, export.ResultArguments)),
        "xgblora-replay": FlagParser((replay.ReplayArguments, replay.ResultArguments)),
    }
    parts = [
        "# Flags",
        MADE,
        "A switch is on by `--flag` or `--flag=true`. Flags can stand in a YAML or JSON file, the first argument.",
        "## xgblora-train",
        "Every flag of transformers' `TrainingArguments` is taken too (`--help_all`); here are the common ones.",
        _table(FLAG_TABLE, [row for row in flag_rows(of_training) if row[0].strip("`-") in shown]),
        "## xgblora-compare",
        "Beside these it takes the flags of `xgblora-train`, but those that its methods set.",
        _table(FLAG_TABLE, flag_rows(of_comparison)),
    ]
    for command, parser in of_result.items():
        parts += [f"## {command}", _table(FLAG_TABLE, flag_rows(parser))]
    check = ("`--check`", "", "Compare every implementation that runs here with the reference.")
    return "\n\n".join([*parts, "## xgblora-env", _table(FLAG_TABLE, [check])]) + "\n"


def flag_rows(parser: FlagParser) -> list[tuple[str, str, str]]:
    """Name, default and help of each flag that has a help of its own."""
    rows = []
    for action in parser._actions:
        if action.option_strings and action.help != argparse.SUPPRESS and action.dest != "help":
            default = "" if action.default in (None, False) else f"`{getattr(action.default, 'value', action.default)}`"
            rows.append((f"`--{action.dest}`", default, _one_line(action.help or "")))
    return rows


def environment_page() -> str:
    text = "The variables that change how xgblora runs or is built; `xgblora-env` prints those of a run."
    rows = [(f"`{name}`", said) for name, said in VARIABLES.items()]
    return "\n\n".join(["# Environment variables", MADE, text, _table(("variable", "what it says"), rows)]) + "\n"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _one_line(text: str) -> str:
    return " ".join(text.replace("%%", "%").replace("|", "\\|").split())


if __name__ == "__main__":
    main()
