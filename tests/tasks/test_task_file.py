"""A user's own task: what a YAML file can say, and one clear line for each thing that can be wrong with it."""

import json
import textwrap
from pathlib import Path

import pytest

from xgblora.errors import InputError
from xgblora.tasks import TASKS, choose_task, read_task_file

REVIEWS = """
name: my-sentiment
data: {train: reviews/train.jsonl, valid: reviews/dev.jsonl}
template: "{text} All in all it was"
label: sentiment
label_words: {neg: terrible, pos: great}
metric: accuracy
"""


@pytest.fixture
def write(tmp_path):
    """A function `(yaml, **rows)` that writes a task file, and JSON lines under reviews/, and gives the file's path."""

    def write(text: str | bytes, **rows: list[dict]) -> Path:
        (tmp_path / "reviews").mkdir(exist_ok=True)
        for split, lines in rows.items():
            (tmp_path / "reviews" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        path = tmp_path / "task.yaml"
        path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).strip().encode())
        return path

    return write


class TestLabelWords:
    """The same candidates for every row."""

    def test_a_task_like_the_built_in_ones(self, write):
        good, bad = {"text": " a gem ", "sentiment": "pos"}, {"text": "no fun", "sentiment": "neg"}
        task = read_task_file(write(REVIEWS, train=[good, bad], dev=[bad]))
        splits = task.load(None)
        first, second = splits.train
        assert first.prompt == "a gem All in all it was"
        assert first.candidates == ("a gem All in all it was terrible", "a gem All in all it was great")
        assert (first.label, second.label, len(splits.valid)) == (1, 0, 1)
        assert (task.name, task.metrics, task.generation) == ("my-sentiment", ("accuracy",), False)
        assert (first.sfc_prompt, first.sfc_candidates) == (None, ())

    def test_a_built_in_task_can_be_written_as_a_file(self, write):
        text = """
            name: CB
            template: "Suppose {premise} Can we infer that \\"{hypothesis}\\"? Yes, No, or Maybe?\\n"
            label: label
            label_words: {entailment: Yes, contradiction: No, neutral: Maybe}
            sfc_prompt: ""
        """
        row = {"premise": "Who knows?", "hypothesis": "there is a shipment", "label": "neutral"}
        assert read_task_file(write(text)).to_sample(row, "here") == TASKS["CB"].to_sample(row, "here")

    @pytest.mark.parametrize(
        "words, value, right",
        [
            ("{0: bad, 1: good}", 1, "good"),
            ("{0: bad, 1: good}", "1", "good"),
            ("{0: bad, 1: good}", 1.0, "good"),
            ("{false: bad, true: good}", True, "good"),
            ("{False: bad, True: good}", False, "bad"),
            ("{no: No, yes: Yes}", "yes", "Yes"),  # which YAML would make {False: False, True: True}
            ("{a: bad, b: good, c: good}", "c", "good"),
        ],
    )
    def test_labels_of_every_kind(self, write, words, value, right):
        task = read_task_file(write(f"template: '{{text}}:'\nlabel: label\nlabel_words: {words}"))
        sample = task.to_sample({"text": "x", "label": value}, "here")
        assert sample.candidates[sample.label] == f"x: {right}"
        assert len(sample.candidates) == 2

    def test_a_prompt_that_ends_its_line_is_followed_without_a_space(self, write):
        text = "template: |\n  {text}\n  Good?\nlabel: label\nlabel_words: {0: 'No', 1: 'Yes'}\nsfc_prompt: Good?"
        sample = read_task_file(write(text)).to_sample({"text": "x", "label": 0}, "here")
        assert sample.candidates == ("x\nGood?\nNo", "x\nGood?\nYes")
        assert (sample.sfc_prompt, sample.sfc_candidates) == ("Good?", ("Good? No", "Good? Yes"))

    def test_braces_of_the_text_itself_are_doubled(self, write):
        text = "template: '{{{text}}} is'\nlabel: label\nlabel_words: {0: a, 1: b}"
        sample = read_task_file(write(text)).to_sample({"text": "{x}", "label": 0}, "here")
        assert sample.prompt == "{{x}} is"

    def test_numbers_can_stand_in_a_prompt(self, write):
        text = "template: '{stars} of 5:'\nlabel: label\nlabel_words: {0: a, 1: b}"
        assert read_task_file(write(text)).to_sample({"stars": 4.0, "label": 0}, "here").prompt == "4 of 5:"


class TestCandidates:
    """Each row has its own."""

    @pytest.mark.parametrize("right", [1, "1", "by land"])
    def test_a_column_of_lists(self, write, right):
        text = "template: \"{question}\\nAnswer:\"\ncandidates: ways\nlabel: right\nsfc_prompt: 'Answer:'"
        row = {"question": "How?", "ways": ["by sea", "by land", "by air"], "right": right}
        sample = read_task_file(write(text)).to_sample(row, "here")
        assert sample.candidates == (
            "How?\nAnswer: by sea",
            "How?\nAnswer: by land",
            "How?\nAnswer: by air",
        )
        assert (sample.label, sample.sfc_candidates[2]) == (1, "Answer: by air")

    def test_several_columns(self, write):
        text = "template: '{question}'\ncandidates: [a, b]\nlabel: right"
        row = {"question": "How?", "a": "by sea", "b": "by land", "right": 0}
        assert read_task_file(write(text)).to_sample(row, "here").candidates == ("How? by sea", "How? by land")

    @pytest.mark.parametrize(
        "ways, right, place",
        [
            (["12", "0", "1", "2"], 0, 0),  # a number is no text
            (["12", "0", "1", "2"], "12", 0),
            (["0", "1"], "1", 1),  # both readings are the same candidate
        ],
    )
    def test_candidates_that_are_numbers(self, write, ways, right, place):
        task = read_task_file(write("template: '{question}'\ncandidates: ways\nlabel: right"))
        assert task.to_sample({"question": "q", "ways": ways, "right": right}, "here").label == place

    @pytest.mark.parametrize("right, place", [(12, 0), ("15", 1), (1, 1)])
    def test_columns_of_numbers(self, write, right, place):
        task = read_task_file(write("template: '{question}'\ncandidates: [a, b]\nlabel: right"))
        assert task.to_sample({"question": "q", "a": 12, "b": 15, "right": right}, "here").label == place

    def test_a_number_that_may_be_a_candidate_of_another_place(self, write):
        task = read_task_file(write("template: '{question}'\ncandidates: [a, b]\nlabel: right"))
        with pytest.raises(InputError, match=r"right=0: may be number 0 \(1\) or number 1 \(0\)"):
            task.to_sample({"question": "q", "a": 1, "b": 0, "right": 0}, "here")

    @pytest.mark.parametrize(
        "row, said",
        [
            ({"ways": "by sea", "right": 0}, "here: ways is a text where a list of texts is needed"),
            ({"ways": ["a", "b"], "right": 2}, "here: right=2: must be one of the 2 candidates, or its number from 0"),
            ({"ways": ["a", "b"], "right": "c"}, "here: right=c: must be one of the 2 candidates"),
            ({"ways": ["a", "b"]}, "here: there is no column right"),
            (
                {"ways": ["12", "0", "1", "2"], "right": "0"},
                "here: right=0: may be number 0 (12) or number 1 (0); in JSON, give candidates as texts",
            ),
            ({"ways": ["a", "b", "a"], "right": "a"}, "here: right=a: may be number 0 (a) or number 2 (a)"),
        ],
    )
    def test_a_wrong_row(self, write, row, said):
        task = read_task_file(write("template: '{question}'\ncandidates: ways\nlabel: right"))
        with pytest.raises(InputError) as error:
            task.to_sample({"question": "q", **row}, "here")
        assert str(error.value).startswith(said)


class TestAnswer:
    """The answer is generated."""

    @pytest.mark.parametrize("given, answers", [("Rome", ("Rome",)), (["Rome", "Roma"], ("Rome", "Roma")), (7, ("7",))])
    def test_one_answer_or_several(self, write, given, answers):
        task = read_task_file(write("template: 'Q: {question}\n\n  A:'\nanswer: city\nmetric: em"))
        sample = task.to_sample({"question": "Where?", "city": given}, "here")
        assert sample.prompt == "Q: Where?\nA:"
        assert sample.candidates == (f"Q: Where?\nA: {answers[0]}\n",)
        assert sample.answers == answers
        assert (task.generation, task.metrics) == (True, ("em", "f1"))

    @pytest.mark.parametrize(
        "given, said",
        [("", "the city is empty"), (["", "b"], "the city is empty"), ([], "no answer"), (None, "city is empty where")],
    )
    def test_no_answer(self, write, given, said):
        task = read_task_file(write("template: '{question}'\nanswer: city"))
        with pytest.raises(InputError, match=f"here: .*{said}"):
            task.to_sample({"question": "q", "city": given}, "here")


class TestData:
    ROW = {"text": "x", "label": 0}
    TEXT = "template: '{text}'\nlabel: label\nlabel_words: {0: a, 1: b}\n"

    def test_one_file_is_parted(self, write):
        for data in ("reviews/all.jsonl", "{train: reviews/all.jsonl}", "{valid: reviews/all.jsonl}"):
            splits = read_task_file(write(f"{self.TEXT}data: {data}", all=[self.ROW] * 10)).load(None)
            assert (len(splits.train), len(splits.valid)) == (8, 2)

    def test_a_data_folder_wins(self, write, tmp_path):
        path = write(self.TEXT, train=[self.ROW] * 3, val=[self.ROW] * 2)
        splits = read_task_file(path).load(str(tmp_path / "reviews"))
        assert (len(splits.train), len(splits.valid)) == (3, 2)

    def test_in_a_data_folder_the_files_that_the_task_names_come_first(self, write, tmp_path):
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        for name, count in (("train", 5), ("test", 3), ("dev", 2)):
            (folder / f"{name}.jsonl").write_text(f"{json.dumps(self.ROW)}\n" * count)
        named = read_task_file(write(f"{self.TEXT}data: {{train: train.jsonl, valid: test.jsonl}}"))
        assert [len(part) for part in vars(named.load(str(folder))).values()] == [5, 3]
        (folder / "test.jsonl").unlink()
        with pytest.raises(InputError) as error:
            named.load(str(folder))
        assert str(error.value) == (
            f"data_dir={folder}: has train.jsonl and not test.jsonl, which task task names too; put it there, or "
            "change `data` in the task's file"
        )
        (folder / "train.jsonl").rename(folder / "training.jsonl")
        assert [len(part) for part in vars(named.load(str(folder))).values()] == [5, 2]

    def test_without_data_the_message_says_what_to_give(self, write):
        with pytest.raises(InputError, match="task task: names no data; give --data_dir"):
            read_task_file(write(self.TEXT)).load(None)

    def test_a_file_of_another_form_is_named_by_its_columns(self, write, tmp_path):
        path = write(f"{self.TEXT}data: all.json")
        (tmp_path / "all.json").write_text(json.dumps({"data": [self.ROW] * 10}))
        with pytest.raises(InputError, match=r"all.json: there is no column label \(columns: data\)"):
            read_task_file(path).load(None)

    @pytest.mark.parametrize("file", ["../all.jsonl", "/etc/all.jsonl", "reviews/../../all.jsonl", "link.jsonl"])
    def test_a_data_file_outside_of_the_folder(self, write, tmp_path, file):
        """A task that came from elsewhere reads what came with it, and nothing else."""
        (tmp_path / "link.jsonl").symlink_to(tmp_path.parent / "all.jsonl")
        for data in (file, f"{{train: {file}}}"):
            with pytest.raises(InputError) as error:
                read_task_file(write(f"{self.TEXT}data: {data}"))
            where = f"{tmp_path / 'task.yaml'} line 4: data: {file!r}"
            assert str(error.value).startswith(f"{where} is outside of the task file's folder")

    def test_a_data_file_that_is_missing(self, write, tmp_path):
        with pytest.raises(InputError) as error:
            read_task_file(write(f"{self.TEXT}data: reviews/no.jsonl")).load(None)
        assert str(error.value) == f"{tmp_path}/reviews/no.jsonl: there is no such file"

    @pytest.mark.parametrize(
        "rows, said",
        [
            ([{"text": "x", "label": 2}], "all.jsonl line 1: label=2: must be 0 or 1"),
            ([{"txt": "x", "label": 0}], "all.jsonl line 1: there is no column text; did you mean txt? (columns: txt,"),
            ([{"text": "x"}], "all.jsonl line 1: there is no column label (columns: text)"),
            ([{"text": " ", "label": 0}], "all.jsonl line 1: the text is empty"),
            ([{"text": ["x"], "label": 0}], "all.jsonl line 1: text is a list where text is needed"),
            ([], "all.jsonl: there are no rows in it"),
        ],
    )
    def test_a_row_that_does_not_fit(self, write, rows, said):
        path = write(f"{self.TEXT}data: {{train: reviews/all.jsonl, valid: reviews/all.jsonl}}", all=rows)
        with pytest.raises(InputError) as error:
            read_task_file(path).load(None)
        assert said in str(error.value)


def replaced(line: str, by: str) -> str:
    assert line in REVIEWS
    return REVIEWS.replace(line, by)


@pytest.mark.parametrize(
    "text, said",
    [
        (replaced("template:", "templat:"), "line 3: templat: unknown field; did you mean template?"),
        (REVIEWS + "shots: 3", "line 7: shots: unknown field; the fields are name, data, template, label, label_words"),
        (replaced('"{text} All in all it was"', '"It was"'), "line 3: template: 'It was' names no column; write one"),
        (replaced('"{text} All in all it was"', '"{text It was"'), "line 3: template: the template '{text It was' has"),
        (replaced('"{text} All in all it was"', '"{text!r} is"'), "{text}: in braces stands the name of a column"),
        (replaced('"{text} All in all it was"', '"{} is"'), "line 3: template: the template '{} is' has {}: in braces"),
        (replaced('"{text} All in all it was"', "[a, b]"), "line 3: template: must be a text"),
        (replaced('"{text} All in all it was"', ""), "line 3: template: is empty"),
        (replaced('template: "{text} All in all it was"', ""), "the field template is missing"),
        (replaced("label: sentiment", ""), "the field label is missing"),
        (replaced("{neg: terrible, pos: great}", "great"), "line 5: label_words: must be a mapping"),
        (replaced("{neg: terrible, pos: great}", "{pos: great}"), "line 5: label_words: must give two or more"),
        (
            replaced("{neg: terrible, pos: great}", "{a: x, b: x}"),
            "line 5: label_words: must give two or more different",
        ),
        (replaced("{neg: terrible, pos: great}", "{a: [x], b: y}"), "label_words: the word for a must be a text"),
        (replaced("pos: great", "neg: great"), "line 5: is no YAML (neg is there twice)"),
        (replaced("accuracy", "f1"), "line 6: metric: f1: a task with label_words is measured by accuracy"),
        (replaced("accuracy", "acuracy"), "line 6: metric: acuracy: a task with label_words is measured by accuracy"),
        (
            replaced("my-sentiment", "my/sentiment"),
            "line 1: name: 'my/sentiment' may have letters, digits and ._- only",
        ),
        (replaced("valid:", "test:"), "line 2: data: test: unknown split; the splits are train and valid"),
        (replaced("reviews/train.jsonl", "[a]"), "line 2: data: train must be the path of a file"),
        (REVIEWS + "answer: text", "needs one of label_words"),
        ("template: '{text}'", "needs one of label_words (the same candidates for every row), candidates"),
        (
            "template: '{text}'\nanswer: a\nlabel: b",
            "line 3: label: is for tasks with candidates; this one has an answer",
        ),
        ("template: '{text}'\nanswer: a\nmetric: accuracy", "accuracy: a task with answer is measured by f1 or em"),
        ("template: '{text}'\ncandidates: [a]\nlabel: b", "line 2: candidates: must be a column that holds lists"),
        ("template: '{text}'\ncandidates: a", "the field label is missing"),
        ("- a\n- b", "must be lines of the form `field: value`"),
        ("", "must be lines of the form `field: value`"),
        ("name: 'a", "line 1: is no YAML (found unexpected end of stream)"),
        ("name: a\n\tb", "line 2: is no YAML"),
        ("[a]: b", "line 1: what stands before a colon must be a text"),
        ("name: ö".encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_a_wrong_task_file_is_named_with_its_line(write, text, said):
    path = write(text)
    with pytest.raises(InputError) as error:
        read_task_file(path)
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_task_file_that_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"no.yaml: there is no such file"):
        read_task_file(tmp_path / "no.yaml")


def test_another_task_by_name_beside_the_file_is_refused(write):
    path = write(REVIEWS)
    assert choose_task(None, str(path)).name == "my-sentiment"
    assert choose_task("my-sentiment", str(path)).name == "my-sentiment"
    with pytest.raises(InputError, match=f"task_name=SST2 and task_file={path}: choose one of them"):
        choose_task("SST2", str(path))
