"""Local files: which file is which split, what is in it, and what is said of a wrong one."""

import csv
import json
from pathlib import Path

import pytest

from xgblora.errors import InputError
from xgblora.tasks.files import find_splits, read_rows

ROWS = [{"text": "naïve, \"so\" 'so'", "label": "1"}, {"text": "two", "label": "0"}]


@pytest.fixture
def make_folder(tmp_path):
    """A function that makes a folder with empty files of the given names."""

    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / name).touch()
        return tmp_path

    return make


def found(folder: Path) -> dict[str, list[str]]:
    return {split: [path.name for path in paths] for split, paths in find_splits(folder).items()}


class TestNames:
    """The names that GLUE, SuperGLUE, SQuAD, DROP and the hub give their files."""

    @pytest.mark.parametrize(
        "names",
        [
            ("train.tsv", "dev.tsv"),
            ("train.jsonl", "val.jsonl"),
            ("train.csv", "validation.csv"),
            ("train-v1.1.json", "dev-v1.1.json"),
            ("drop_dataset_train.json", "drop_dataset_dev.json"),
            ("record_debug_train.jsonl", "record_debug_val.jsonl"),
            ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
            ("Train.TSV", "Dev.TSV"),
        ],
    )
    def test_both_splits(self, make_folder, names):
        folder = make_folder(*names, "test.tsv", "test.jsonl", "README.md", "notes.txt", "extra.json")
        assert found(folder) == {"train": [names[0]], "valid": [names[1]]}

    def test_shards_are_taken_in_order(self, make_folder):
        shards = [f"train-0000{number}-of-00003.parquet" for number in range(3)]
        assert found(make_folder(*shards[::-1], "validation.parquet"))["train"] == shards

    @pytest.mark.parametrize(
        "name, split",
        [("train_part_20articles.json", "train"), ("val.jsonl", "valid"), ("drop_allennlp.json", "train")],
    )
    def test_one_split(self, make_folder, name, split):
        assert found(make_folder(name, "test.jsonl")) == {split: [name]}

    @pytest.mark.parametrize("names", [(), ("test.jsonl",), ("notes.txt",)])
    def test_no_data(self, make_folder, names):
        with pytest.raises(InputError, match=r"there are no data files in it, such as train.tsv and dev.tsv"):
            find_splits(make_folder(*names))

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(InputError, match=f"data_dir={tmp_path / 'no'}: there are no data files"):
            find_splits(tmp_path / "no")

    @pytest.mark.parametrize(
        "names, split",
        [(("train.tsv", "train.jsonl"), "train"), (("dev.tsv", "val.tsv"), "valid"), (("a.json", "b.json"), "train")],
    )
    def test_two_that_could_be_the_same_split(self, make_folder, names, split):
        with pytest.raises(InputError, match=f"which of .*{names[0]}.* is the {split} split"):
            find_splits(make_folder(*names))


def write(path: Path, rows: list[dict]) -> Path:
    """`rows` in the format that the name of `path` says."""
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
        return path
    texts = {
        ".tsv": "".join("\t".join(cells) + "\n" for cells in [rows[0], *(row.values() for row in rows)]),
        ".csv": 'text,label\n"naïve, ""so"" \'so\'",1\ntwo,0\n',
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        ".json": json.dumps(rows),
    }
    path.write_text(texts[path.suffix], encoding="utf-8")
    return path


class TestFormats:
    @pytest.mark.parametrize(
        "name, first_origin",
        [
            ("a.tsv", "line 2"),
            ("a.csv", "line 2"),
            ("a.jsonl", "line 1"),
            ("a.json", "entry 1"),
            ("a.parquet", "row 1"),
        ],
    )
    def test_rows_and_their_origins(self, tmp_path, name, first_origin):
        path = write(tmp_path / name, ROWS)
        rows = read_rows(path)
        assert [row for row, _ in rows] == ROWS
        assert rows[0][1] == f"{path} {first_origin}"

    def test_lines_of_json_may_be_called_json(self, tmp_path):
        path = write(tmp_path / "a.jsonl", ROWS).rename(tmp_path / "a.json")
        assert [row for row, _ in read_rows(path)] == ROWS

    @pytest.mark.parametrize("indent", [None, 2])
    def test_one_object_is_one_row(self, tmp_path, indent):
        (tmp_path / "a.json").write_text(json.dumps({"data": [1]}, indent=indent) + "\n")
        assert read_rows(tmp_path / "a.json") == [({"data": [1]}, str(tmp_path / "a.json"))]

    def test_a_list_over_several_lines(self, tmp_path):
        (tmp_path / "a.json").write_text('[{"a": 1}\n,{"a": 2}]')
        assert [row for row, _ in read_rows(tmp_path / "a.json")] == [{"a": 1}, {"a": 2}]

    def test_a_cell_of_a_csv_may_have_several_lines(self, tmp_path):
        (tmp_path / "a.csv").write_text('text,label\n"one\ntwo",1\nthree,0\n')
        (first, _), (_, origin) = read_rows(tmp_path / "a.csv")
        assert first == {"text": "one\ntwo", "label": "1"}
        assert origin.endswith("a.csv line 4")

    def test_a_pair_of_surrogates_is_a_character(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"a": "\\ud83d\\ude00"}\n')
        assert read_rows(tmp_path / "a.jsonl")[0][0] == {"a": "\N{GRINNING FACE}"}

    @pytest.mark.parametrize("name, delimiter", [("a.csv", ","), ("a.tsv", "\t")])
    def test_a_field_may_be_as_long_as_a_document(self, tmp_path, name, delimiter):
        before = csv.field_size_limit()
        document = "word " * 40_000
        (tmp_path / name).write_text(f"text{delimiter}label\n{document}{delimiter}1\n")
        assert read_rows(tmp_path / name)[0][0] == {"text": document, "label": "1"}
        assert csv.field_size_limit() == before

    def test_a_tsv_with_a_quoted_header_is_a_quoted_table(self, tmp_path):
        (tmp_path / "a.tsv").write_text('"text"\t"label"\n"a ""gem""\tindeed\nso"\t"1"\nplain\t0\n')
        assert [row for row, _ in read_rows(tmp_path / "a.tsv")] == [
            {"text": 'a "gem"\tindeed\nso', "label": "1"},
            {"text": "plain", "label": "0"},
        ]

    def test_quoted_fields_of_another_tsv_stay_as_they_are_and_are_counted(self, tmp_path, caplog):
        (tmp_path / "a.tsv").write_text('text\tlabel\n"a ""gem"""\t1\n"so" he said\t0\n"\t0\n')
        assert [row["text"] for row, _ in read_rows(tmp_path / "a.tsv")] == ['"a ""gem"""', '"so" he said', '"']
        (record,) = caplog.records
        assert record.getMessage().startswith(f"{tmp_path / 'a.tsv'}: in 1 rows a field stands in quotation marks")

    @pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.json"])
    def test_a_byte_order_mark_and_windows_line_ends(self, tmp_path, name):
        path = write(tmp_path / name, ROWS)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        assert [row for row, _ in read_rows(path)] == ROWS


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": 1,}\n', "a.jsonl line 3: is no JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a"\n', "a.jsonl line 2: is no JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', 'a.jsonl line 2: must be an object, {"column": value, ...}'),
        ("a.json", b'{\n"a": 1\n', "a.json line 3: is no JSON"),
        ("a.json", b'[{"a": 1}, 2]', "a.json entry 2: must be an object"),
        ("a.json", b'{"a": 1}\n{"a": }\n', "a.json line 2: is no JSON"),
        ("a.json", b"", "a.json line 1: is no JSON"),
        ("a.json", b"[]", "a.json: there are no rows in it"),
        ("a.jsonl", b"\n", "a.jsonl: there are no rows in it"),
        ("a.tsv", b"", "a.tsv: there are no rows in it"),
        ("a.csv", b"text,label\n", "a.csv: there are no rows in it"),
        ("a.csv", b"text,label\none, two,1\n", "a.csv line 2: the first line names 2 columns, and here are 3"),
        ("a.tsv", b"text\tlabel\none\n", "a.tsv line 2: the first line names 2 columns, and here are 1"),
        ("a.csv", b'text,label\n"one,1\n', "a.csv line 2: is no table"),
        ("a.tsv", "text\nöde\n".encode("latin-1"), "a.tsv: is not UTF-8 text"),
        ("a.jsonl", '{"a": "ö"}'.encode("latin-1"), "a.jsonl: is not UTF-8 text"),
        ("a.json", '{"a": "ö"}'.encode("utf-16"), "a.json: is not UTF-8 text"),
        ("a.parquet", b"no parquet", "a.parquet: is no parquet file"),
        ("a.jsonl", b'{"a": 1}\n{"a": "x \\ud83d"}\n', "a.jsonl line 2: \\ud83d is half of a surrogate pair"),
        ("a.jsonl", b'{"a": 1}\n{"\\uDE00": [{"b": 1}]}\n', "a.jsonl line 2: \\uDE00 is half of a surrogate pair"),
        ("a.json", b'[{"a": "\\ud83d\\ude00"},\n{"a": "\\ud83d"}]', "a.json line 2: \\ud83d is half of"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n", "a.jsonl line 1: cannot be read as JSON"),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", "a.jsonl line 1: cannot be read as JSON"),
        ("a.txt", b"text", "a.txt: data files end in .tsv, .csv, .jsonl, .json, .parquet"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(tmp_path, name, content, said):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_rows(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"a.tsv: there is no such file"):
        read_rows(tmp_path / "a.tsv")


def test_a_parquet_file_of_a_few_bytes_and_many_rows(tmp_path):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    one = pyarrow.table({"a": pyarrow.nulls(1 << 24)})
    with parquet.ParquetWriter(tmp_path / "a.parquet", one.schema) as writer:
        for _ in range(9):
            writer.write_table(one)
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    with pytest.raises(InputError, match=r"a.parquet: unpacks to .* and 150994944 rows"):
        read_rows(tmp_path / "a.parquet")
