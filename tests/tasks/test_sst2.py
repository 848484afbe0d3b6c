"""SST-2: prompts, label words, and what a wrong file leads to."""

import pytest

from xgblora.errors import InputError
from xgblora.tasks import TASKS, load_task


@pytest.fixture
def write_files(tmp_path):
    """A function that writes train.tsv and dev.tsv with the given text, and gives their folder."""

    def write(train: str | bytes, dev: str = "sentence\tlabel\nfine\t1\n") -> str:
        (tmp_path / "train.tsv").write_bytes(train if isinstance(train, bytes) else train.encode())
        (tmp_path / "dev.tsv").write_text(dev, encoding="utf-8")
        return str(tmp_path)

    return write


def test_prompt_and_candidates_are_mezo_s(write_files):
    splits = load_task("SST2", write_files("sentence\tlabel\n a gem \t1\nno fun\t0\n"))
    first, second = splits.train
    assert first.prompt == "a gem It was"
    assert first.candidates == ("a gem It was terrible", "a gem It was great")
    assert (first.label, second.label) == (1, 0)
    assert [sample.prompt for sample in splits.valid] == ["fine It was"]


def test_quotation_marks_are_characters_like_any_other(write_files):
    rows = '"a" half-quote " here\t1\n"never closed\t0\nit \'s\t1\n'
    samples = load_task("SST2", write_files("sentence\tlabel\n" + rows)).train
    assert [sample.prompt for sample in samples] == [
        '"a" half-quote " here It was',
        '"never closed It was',
        "it 's It was",
    ]


def test_columns_may_come_in_any_order_and_beside_others(write_files):
    (sample,) = load_task("SST2", write_files("id\tlabel\tsentence\n7\t1\tgood\n")).train
    assert (sample.prompt, sample.label) == ("good It was", 1)


@pytest.mark.parametrize("text", ["sentence\tlabel\r\ngood\t1\r\n", "\ufeffsentence\tlabel\ngood\t1"])
def test_windows_line_ends_a_byte_order_mark_and_no_last_line_end_are_fine(write_files, text):
    (sample,) = load_task("SST2", write_files(text)).train
    assert (sample.prompt, sample.label) == ("good It was", 1)


@pytest.mark.parametrize(
    "text, said",
    [
        ("sentence\tlabel\ngood\t1\nbad\t2\n", "train.tsv line 3: label=2: must be 0 or 1"),
        ("sentence\tlabel\n\ngood\t1\n\nbad\tx\n", "train.tsv line 5: label=x"),
        ("sentence\tlabel\ngood\n", "train.tsv line 2: the first line names 2 columns, and here are 1"),
        ("sentence\tlabel\n  \t1\n", "train.tsv line 2: the sentence is empty"),
        ("sentence\tlabel\n", "train.tsv: there are no rows"),
        ("", "train.tsv: there are no rows"),
        ("sentence,label\ngood,1\n", "train.tsv line 2: there is no column label (columns: sentence,label)"),
        ("text\tlabel\ngood\t1\n", "train.tsv line 2: there is no column sentence (columns: text, label)"),
        ("sentences\tlabel\ngood\t1\n", "there is no column sentence; did you mean sentences? (columns: sentences"),
        ("sentence\tlabel\nöde\t0\n".encode("latin-1"), "train.tsv: is not UTF-8 text"),
    ],
)
def test_a_wrong_file_is_named_with_the_line(write_files, text, said):
    with pytest.raises(InputError) as error:
        load_task("SST2", write_files(text))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", [1, "1"])
def test_rows_of_the_hub_have_labels_as_numbers(label):
    assert TASKS["SST2"].to_sample({"sentence": "good", "label": label}, "here").label == 1


def test_a_hidden_label_of_a_test_split_is_refused():
    with pytest.raises(InputError, match="here: label=-1"):
        TASKS["SST2"].to_sample({"sentence": "good", "label": -1}, "here")
