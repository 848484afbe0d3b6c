"""YAML and JSON files that people write, and that anybody else may have written."""

import datetime

import pytest

from xgblora.errors import InputError
from xgblora.settings_file import compose, read_settings


@pytest.fixture
def write(tmp_path):
    """A function `(content, name)` that writes a file and gives its path."""

    def write(content: str | bytes, name: str = "a.yaml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    "name, content, found",
    [
        ("a.yaml", "a: 1\nb: [x, 1.5]\nc: {d: null}\n", {"a": 1, "b": ["x", 1.5], "c": {"d": None}}),
        ("a.yaml", "", None),
        ("a.json", "", None),
        ("a.yml", "- a", ["a"]),
        ("a.yaml", "a: 2026-01-02", {"a": datetime.date(2026, 1, 2)}),
        ("a.yaml", "\ufeffa: 1", {"a": 1}),
        # tabs, and numbers as JSON has them
        ("a.json", '{\n\t"a":\t1e-3}', {"a": 0.001}),
        ("a.json", '{"a": "\\ud83d\\ude00"}', {"a": "\N{GRINNING FACE}"}),
        ("a.yaml", '{"a": "\\ud83d\\ude00"}', {"a": "\N{GRINNING FACE}"}),
    ],
)
def test_what_it_holds(write, name, content, found):
    assert read_settings(write(content, name)) == found


def bomb() -> str:
    """Ten lines that are a list of a thousand million entries."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.yaml", "a: [1", " line 1: is no YAML (expected"),
        ("a.yaml", "a: 1\na: 2", " line 2: is no YAML (a is there twice)"),
        ("a.yaml", "b:\n  a: 1\n  a: 1", " line 3: is no YAML (a is there twice)"),
        ("a.yaml", bomb(), " line 2: is no YAML (an alias (*) is not taken here; write it out)"),
        ("a.yaml", "a: &a [*a]", " line 1: is no YAML (an alias"),
        ("a.yaml", "a: 1\n---\nb: 2", " line 2: is no YAML (but found another document)"),
        ("a.yaml", "a: !!python/object/apply:os.system [x]", " line 1: is no YAML (could not determine a constructor"),
        ("a.yaml", "a: !!python/name:os.system", " line 1: is no YAML (could not determine a constructor"),
        ("a.yaml", "a: 2026-13-01", ": is no YAML (month must be in 1..12"),
        ("a.yaml", "{a: 1}: 2", " line 1: is no YAML (found unhashable key)"),
        ("a.yaml", "[" * 100_000, " line 1: is no YAML (brackets in brackets without end)"),
        ("a.yaml", "- " * 100_000, ": is no YAML"),
        ("a.yaml", 'a: "\\ud83d"', " line 1: is no YAML (a text has half of a surrogate pair)"),
        ("a.yaml", b"a: \xff", ": is not UTF-8 text"),
        ("a.yaml", b"a: \x00", ": is no YAML"),
        ("a.yaml", "x" * (1 << 18) + "x", ": is larger than 256 KiB"),
        ("a.json", "{'a': 1}", " line 1: is no JSON"),
        ("a.json", '{"a": 1, "a": 2}', ": cannot be read as JSON (a is there twice)"),
        ("a.json", '{"a": "\\ud83d"}', ": cannot be read as JSON"),
        ("a.json", '{"a": ' + "9" * 5000 + "}", ": cannot be read as JSON"),
        ("a.json", "[" * 100_000, ": cannot be read as JSON"),
    ],
)
def test_what_is_refused(write, name, content, said):
    path = write(content, name)
    with pytest.raises(InputError) as error:
        read_settings(path)
    assert str(error.value).startswith(f"{path}{said}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_a_folder(tmp_path):
    for path in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(InputError, match="there is no such file"):
            read_settings(path)


def test_nodes_keep_their_texts_and_lines(write):
    node = compose(write("a: No\nb: 1e3\n"))
    assert [(key.value, value.value, key.start_mark.line) for key, value in node.value] == [
        ("a", "No", 0),
        ("b", "1e3", 1),
    ]
    assert compose(write("")) is None
