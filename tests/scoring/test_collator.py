"""Batches: padded on the left, with every index pointing where the example says."""

import pytest
import torch

from xgblora.scoring import Collator, EncodedExample
from xgblora.zo.stacking import is_stackable, stacked

PAD = 9
ONE = EncodedExample(sequences=((1, 2, 3),), rows=((0, 2),), options=(((0, 5),), ((0, 6),)), label=1)
TWO = EncodedExample(
    sequences=((1, 2, 3, 4, 5), (1, 7)),
    rows=((0, 2), (0, 3), (1, 1), (0, 4)),
    options=(((0, 4), (1, 5), (3, 8)), ((2, 6),), ((0, 4), (1, 5))),
    label=2,
)


def test_sequences_are_padded_on_the_left():
    batch = Collator(PAD)([ONE, TWO])
    assert batch["input_ids"].tolist() == [
        [[PAD, PAD, 1, 2, 3], [PAD, PAD, 1, 2, 3]],  # the first sequence again, where there is no second
        [[1, 2, 3, 4, 5], [PAD, PAD, PAD, 1, 7]],
    ]
    assert batch["attention_mask"].tolist() == [[[0, 0, 1, 1, 1]] * 2, [[1] * 5, [0, 0, 0, 1, 1]]]
    assert batch["label"].tolist() == [1, 2]


def test_rows_point_at_the_tokens_before_the_option_s():
    batch = Collator(PAD)([ONE, TWO])
    for index, example in enumerate((ONE, TWO)):
        flat = batch["input_ids"][index].flatten()
        for place, (sequence, position) in enumerate(example.rows):
            assert flat[batch["rows"][index, place]] == example.sequences[sequence][position]
            assert batch["rows"][index, place] // 5 == sequence


def test_option_tokens_are_where_the_mask_says():
    batch = Collator(PAD)([ONE, TWO])
    assert batch["option_mask"].sum(dim=-1).tolist() == [[1, 1, 0], [3, 1, 2]]
    for index, example in enumerate((ONE, TWO)):
        for candidate, option in enumerate(example.options):
            count = len(option)
            pairs = zip(
                batch["option_rows"][index, candidate, :count].tolist(),
                batch["option_targets"][index, candidate, :count].tolist(),
                strict=True,
            )
            assert tuple(pairs) == option


def test_all_indices_are_in_range_padding_included():
    batch = Collator(PAD)([ONE, TWO])
    assert batch["rows"].min() >= 0
    assert batch["rows"].max() < batch["input_ids"][0].numel()
    assert batch["option_rows"].max() < batch["rows"].shape[1]


def test_a_batch_is_int64_and_can_be_repeated_along_the_examples():
    batch = Collator(PAD)([ONE, TWO, ONE])
    plain = {name: batch.pop(name) for name in ("grid", "queries", "copies", "groups", "trunk")}
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert is_stackable({**batch, **plain})
    twice = stacked({**batch, **plain}, 2, 6, "layers.3")
    assert {name: twice[name] for name in plain} == {**plain, "copies": 2, "groups": 6, "trunk": "layers.3"}
    for name, tensor in batch.items():
        assert torch.equal(twice[name][3:], tensor)


@pytest.mark.parametrize("few_shapes", [False, True])
def test_each_row_has_a_slot_of_its_own_in_its_row_of_the_grid(few_shapes):
    examples = [EncodedExample(((*range(5, 45), n),), ((0, 40),), (((0, 7),),), 0) for n in range(5)]
    forked = EncodedExample(((*range(30), 3, 4), (*range(30), 5)), ((0, 29), (1, 29), (0, 31)), (((0, 7),),), 0)
    batch = Collator(PAD, few_shapes=few_shapes)([*examples, forked])
    rows, length = batch["grid"]
    cells = batch["cells"].flatten(1).gather(1, batch["rows"])
    slots = dict(zip(batch["slots"].flatten().tolist(), cells.flatten().tolist(), strict=True))
    # the two sequences of the last one share the first of its rows
    assert len(slots) == len(set(slots.values())) == 7
    assert all(slot // batch["queries"] == cell // length for slot, cell in slots.items())
    assert max(slots) < rows * batch["queries"]
    assert batch["queries"].bit_count() == 1 or not few_shapes


def test_the_last_layer_computes_all_where_many_rows_are_read():
    whole = EncodedExample(
        (tuple(range(20)),), tuple((0, i) for i in range(20)), (tuple((i, 3) for i in range(20)),), 0
    )
    assert Collator(PAD)([whole])["queries"] == 0


def test_every_token_has_a_cell_of_its_own_but_for_shared_prefixes():
    batch = Collator(PAD)([ONE, TWO])
    rows, length = batch["grid"]
    there = batch["attention_mask"].bool()
    there[0, 1] = False  # the first sequence again
    assert (batch["cells"][~there] == rows * length).all()
    assert batch["shared"].tolist() == [0, 1]
    shared, first = batch["cells"][1, 1, 3], batch["cells"][1, 0, 0]
    assert shared == first
    used = batch["cells"][there].tolist()
    assert len(set(used)) == len(used) - 1
    assert max(used) < rows * length
