"""The tasks over files as they are published: small ones written here, and the real ones of the shared data."""

import json
from collections import Counter

import pytest

from xgblora.errors import InputError
from xgblora.scoring import encode
from xgblora.tasks import TASKS, load_task


@pytest.fixture
def load(tmp_path):
    """A function `(task, **records)` that writes a file a split, as JSON lines or one JSON object, and loads them."""

    def load(name: str, **records: list | dict):
        for split, content in records.items():
            if isinstance(content, dict):
                (tmp_path / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
            else:
                (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
        return load_task(name, str(tmp_path))

    return load


class TestMultiRC:
    PASSAGE = {
        "idx": 7,
        "passage": {
            "text": "Pip ate.",
            "questions": [
                {
                    "question": "Who?",
                    "idx": 0,
                    "answers": [{"text": "Pip", "idx": 0, "label": 1}, {"text": "Joe", "idx": 1, "label": 0}],
                },
                {"question": "What?", "idx": 1, "answers": [{"text": "Pie", "idx": 2, "label": 0}]},
            ],
        },
    }

    def test_each_answer_is_a_sample(self, load):
        samples = load("MultiRC", train=[self.PASSAGE], val=[self.PASSAGE]).train
        assert [sample.label for sample in samples] == [1, 0, 0]
        assert samples[2].prompt.startswith('Pip ate.\nQuestion: What?\nI found this answer "Pie".')
        assert samples[2].origin.endswith("train.jsonl line 1, question 1, answer 2")

    def test_hidden_labels_are_refused(self, load):
        hidden = json.loads(json.dumps(self.PASSAGE))
        del hidden["passage"]["questions"][0]["answers"][1]["label"]
        with pytest.raises(InputError, match=r"val.jsonl line 1: there is no column label \(columns: text, idx\)"):
            load("MultiRC", train=[self.PASSAGE], val=[hidden])

    def test_another_task_s_file_is_refused(self, load):
        with pytest.raises(InputError, match=r"line 1: there is no column questions \(columns: text\)"):
            load("MultiRC", train=[{"passage": {"text": "a"}}], val=[self.PASSAGE])
        with pytest.raises(InputError, match="line 1: a text stands where an object with questions is needed"):
            load("MultiRC", train=[{"passage": "a"}], val=[self.PASSAGE])


class TestReCoRD:
    ARTICLE = {
        "passage": {
            "text": "Bob Lee saw Ann.\n@highlight\nBob left",
            "entities": [
                {"start": 12, "end": 14},
                {"start": 0, "end": 6},
                {"start": 28, "end": 30},
                {"start": 0, "end": 2},
            ],
        },
        "qas": [
            {"query": "@placeholder was seen.", "answers": [{"text": "Ann", "start": 12, "end": 14}]},
            {"query": "@placeholder left.", "answers": [{"text": text} for text in ("Bob Lee", "Bob", "Bob")]},
        ],
    }

    def test_entities_and_answers_are_sorted_and_each_is_there_once(self, load):
        seen, left = load("ReCoRD", train=[self.ARTICLE], val=[self.ARTICLE]).train
        assert [text[len(seen.prompt) :] for text in seen.candidates] == [
            " Ann was seen.",
            " Bob was seen.",
            " Bob Lee was seen.",
        ]
        assert (seen.right, left.right) == ((0,), (1, 2))
        assert left.origin.endswith("line 1, query 2")


class TestWSC:
    def row(self, text: str, span1: str, span2: str) -> dict:
        target = {"span1_text": span1, "span1_index": 2, "span2_text": span2, "span2_index": 5}
        return {"text": text, "target": target, "label": True, "idx": 0}

    @pytest.mark.parametrize(
        "text, span1, spelt",
        [
            ("I put the cake away . It kept.", "The cake", "the cake"),
            ("The lawyer asked him , but he left", "the lawyer", "The lawyer"),
            ("I saw Mark . Then he left", "Mark", "Mark"),
            ("I saw Mark . Then he left", "Mark.", "Mark"),
            ("The user typed willow tree and it broke", "willow\ntree", "willow tree"),
            ("Kamenev , and then Zinoviev left", "Kamenev and Zinoviev", "Kamenev and Zinoviev"),
        ],
    )
    def test_nouns_are_spelt_as_in_the_hub_s_wsc_fixed(self, load, text, span1, spelt):
        row = self.row(text, span1, "it")
        (sample,) = load("WSC", train=[row], val=[row]).train
        assert sample.prompt.endswith(f'does the pronoun "it" refer to {spelt}? Yes or No?\n')
        assert sample.label == 1


class TestBoolQ:
    @pytest.mark.parametrize("label, index", [({"answer": True}, 0), ({"label": False}, 1), ({"label": 1}, 0)])
    def test_the_label_is_called_answer_or_as_in_superglue_label(self, load, label, index):
        row = {"passage": "p", "question": "q", **label}
        assert load("BoolQ", train=[row], val=[row]).valid[0].label == index


class TestSQuAD:
    ARTICLE = {
        "title": "Rome",
        "paragraphs": [
            {
                "context": "Rome is old.",
                "qas": [{"id": "a1", "question": "What is old?", "answers": [{"text": "Rome", "answer_start": 0}]}],
            }
        ],
    }

    def test_questions_are_rows(self, load):
        (sample,) = load("SQuAD", train={"data": [self.ARTICLE]}, dev={"data": [self.ARTICLE]}).train
        assert sample.prompt == "Title: Rome\nContext: Rome is old.\nQuestion: What is old?\nAnswer:"
        assert sample.origin.endswith("train.json question a1")

    def test_a_question_without_an_answer_is_refused(self, load):
        article = json.loads(json.dumps(self.ARTICLE))
        article["paragraphs"][0]["qas"][0]["answers"] = []
        with pytest.raises(InputError, match=r"dev.json question a1: there is no answer"):
            load("SQuAD", train={"data": [self.ARTICLE]}, dev={"data": [article]})


class TestDROP:
    def section(self, **answer) -> dict:
        whole = {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": [], **answer}
        return {"passage": "p", "qa_pairs": [{"query_id": "q1", "question": "q", "answer": whole}]}

    @pytest.mark.parametrize(
        "answer, texts",
        [
            ({"number": "4"}, ("4",)),
            ({"spans": ["one", "two"]}, ("one", "two")),
            ({"date": {"day": "5", "month": "May", "year": "1612"}}, ("5 May 1612",)),
            ({"date": {"day": "", "month": "", "year": "1612"}}, ("1612",)),
            ({"number": "0", "date": {}}, ("0",)),
        ],
    )
    def test_an_answer_is_a_number_a_date_or_spans(self, load, answer, texts):
        splits = load("DROP", train={"s1": self.section(**answer)}, dev={"s1": self.section(number="1")})
        assert splits.train[0].answers == texts

    def test_of_a_held_out_question_all_people_s_answers_count(self, load):
        section = self.section(number="1")
        others = [{"number": "2", "date": {}, "spans": []}, {"number": "", "date": {}, "spans": ["two", "both"]}]
        section["qa_pairs"][0]["validated_answers"] = others
        assert load("DROP", train={"s1": section}, dev={"s1": section}).valid[0].answers == ("2", "two", "both")

    @pytest.mark.parametrize("answer", [{"number": "4", "spans": ["four"]}, {}])
    def test_an_answer_of_two_kinds_or_none_is_left_out(self, load, answer):
        sections = {"s1": self.section(**answer), "s2": self.section(number="1")}
        assert len(load("DROP", train=sections, dev=sections).train) == 1

    def test_another_task_s_file_is_refused(self, load):
        with pytest.raises(InputError, match=r"train.json: a list stands where an object with qa_pairs is needed"):
            load("DROP", train={"data": []}, dev={"s1": self.section(number="1")})


SHARED = {
    # rows to train on, rows held out, labels of the held-out rows
    "SST2": (27349, 872, {0: 428, 1: 444}),
    "RTE": (2490, 277, {0: 146, 1: 131}),
    "CB": (250, 56, {0: 23, 1: 28, 2: 5}),
    "BoolQ": (2593, 677, {0: 452, 1: 225}),
    "WSC": (554, 104, {0: 66, 1: 38}),
    "WIC": (5428, 638, {0: 319, 1: 319}),
    "MultiRC": (27243, 4848, {0: 2773, 1: 2075}),
    "Copa": (400, 100, {0: 55, 1: 45}),
    "ReCoRD": (11, 11, None),
    "SQuAD": (3734, 905, {0: 905}),
    "DROP": (4, 15, {0: 15}),
}


@pytest.mark.parametrize("name", TASKS)
def test_the_shared_data(shared_data, shared_tokenizer, name):
    """Counts and balance of the published sets; samples of either split can be encoded."""
    splits = load_task(name, str(shared_data(name.lower())))
    train, held_out, labels = SHARED[name]
    assert (len(splits.train), len(splits.valid)) == (train, held_out)
    if labels:
        assert Counter(sample.label for sample in splits.valid) == labels
    tokenizer = shared_tokenizer("opt-tokenizer")
    for samples in (splits.train, splits.valid):
        for sample in samples[:: max(1, len(samples) // 50)]:
            example = encode(sample, tokenizer, max_length=2048)
            assert len(example.options) == len(sample.candidates)
            assert all(candidate.startswith(sample.prompt) for candidate in sample.candidates)
            assert len(sample.sfc_candidates) == (0 if TASKS[name].generation else len(sample.candidates))


@pytest.mark.parametrize("name, end", [("SQuAD", "\nContext:"), ("DROP", "\nQuestion:")])
def test_no_article_is_both_trained_on_and_held_out(shared_data, name, end):
    splits = load_task(name, str(shared_data(name.lower())))
    trained, held_out = ({sample.prompt.split(end)[0] for sample in part} for part in (splits.train, splits.valid))
    assert len(trained) + len(held_out) == {"SQuAD": 20, "DROP": 3}[name]
    assert not trained & held_out
