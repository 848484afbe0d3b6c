"""Tasks: the registry, both splits or one, samples that are made when asked for."""

import json
import logging

import pytest

from xgblora.errors import InputError
from xgblora.tasks import TASKS, choose_task, load_task
from xgblora.tasks.task import Samples, hold_out


class TestChoosing:
    def test_without_a_name_it_is_sst2(self):
        assert choose_task(None) is TASKS["SST2"]

    @pytest.mark.parametrize(
        "name, said",
        [
            ("SST3", "task_name=SST3: unknown; did you mean SST2?; known tasks: SST2, RTE, CB, BoolQ, WSC, WIC"),
            ("squad", "task_name=squad: unknown; did you mean SQuAD?"),
            ("MNLI", "task_name=MNLI: unknown; known tasks: SST2"),
        ],
    )
    def test_an_unknown_name_lists_the_known_ones(self, name, said):
        with pytest.raises(InputError) as error:
            load_task(name, None)
        assert str(error.value).startswith(said)


def rows(*passages: str) -> list:
    return [({"passage": passage, "number": number}, f"row {number}") for number, passage in enumerate(passages)]


class TestHoldingOut:
    """One split is used for both, without overlap."""

    def test_a_fifth_is_held_out_in_the_order_of_the_file_and_always_the_same(self, caplog):
        given = rows(*"abcdefghij" * 10)
        with caplog.at_level(logging.INFO, logger="xgblora"):
            parts = hold_out(given, None, "one.jsonl")
        assert (len(parts["train"]), len(parts["valid"])) == (80, 20)
        assert sorted(parts["train"] + parts["valid"], key=given.index) == given
        for part in parts.values():
            assert part == sorted(part, key=given.index)
        assert hold_out(given, None, "one.jsonl") == parts
        assert caplog.messages[0] == "one.jsonl: is the only split; 20 of its 100 examples are held out"

    def test_rows_of_a_passage_stay_together(self, caplog):
        with caplog.at_level(logging.INFO, logger="xgblora"):
            parts = hold_out(rows(*"aabbbbcddeaabe"), "passage", "one.jsonl")
        trained, held_out = ({row["passage"] for row, _ in parts[split]} for split in ("train", "valid"))
        assert len(held_out) == 1
        assert trained | held_out == set("abcde")
        assert caplog.messages[0].endswith("held out, whole by passage")

    @pytest.mark.parametrize("passages", ["a", "aaa"])
    def test_one_passage_cannot_be_parted(self, passages):
        with pytest.raises(InputError, match=r"one.jsonl: is the only split, and has too little"):
            hold_out(rows(*passages), "passage", "one.jsonl")

    def test_two_are_the_least(self):
        parts = hold_out(rows("a", "b"), "passage", "one.jsonl")
        assert (len(parts["train"]), len(parts["valid"])) == (1, 1)

    @pytest.mark.parametrize("name", ["train.jsonl", "val.jsonl", "boolq.jsonl"])
    def test_whatever_the_only_split_is(self, tmp_path, name):
        lines = [json.dumps({"passage": f"p{i}", "question": "q", "label": True}) for i in range(10)]
        (tmp_path / name).write_text("\n".join(lines))
        splits = load_task("BoolQ", str(tmp_path))
        assert (len(splits.train), len(splits.valid)) == (8, 2)

    def test_the_column_that_keeps_rows_together_is_asked_for(self, tmp_path):
        (tmp_path / "val.jsonl").write_text('{"question": "q", "label": true}')
        with pytest.raises(InputError, match=r"val.jsonl line 1: there is no column passage"):
            load_task("BoolQ", str(tmp_path))


class TestSamples:
    """A sequence of samples."""

    @pytest.fixture
    def made(self):
        return []

    @pytest.fixture
    def samples(self, made):
        def to_sample(row, origin):
            made.append(origin)
            return row["number"]

        return Samples(rows(*"abcde"), to_sample)

    def test_a_sample_is_made_when_it_is_asked_for(self, samples, made):
        assert len(samples) == 5
        assert made == []
        assert samples[3] == 3
        assert made == ["row 3"]

    def test_it_is_a_sequence(self, samples):
        assert samples[1:4] == [1, 2, 3]
        assert samples[-1] == 4
        assert list(samples) == [0, 1, 2, 3, 4]
        with pytest.raises(IndexError):
            samples[5]

    def test_every_local_row_is_checked_even_if_it_is_not_drawn(self, tmp_path):
        good = '{"premise": "p", "hypothesis": "h", "label": "entailment"}\n'
        (tmp_path / "train.jsonl").write_text(good * 500 + '{"premise": "p", "hypothesis": "h", "label": "maybe"}\n')
        (tmp_path / "val.jsonl").write_text(good)
        with pytest.raises(InputError, match=r"train.jsonl line 501: label=maybe: must be entailment, not_entailment"):
            load_task("RTE", str(tmp_path))
