"""Hidden states are computed once, in batches that do not depend on what is asked for, in memory or in a file."""

import itertools
import os
import signal

import pytest
import torch

from tests.scoring.test_packing import MIXED, forked, plain
from xgblora.errors import InputError
from xgblora.scoring import Collator, OptionScorer
from xgblora.scoring.blocks import blocks_of
from xgblora.scoring.trunk_memory import TrunkMemory, _mapped, states_by

TRAIN, DEV = [plain(n, n) for n in (5, 9, 7, 3)], [plain(9, 9), forked(4, 2, 3)]
WIDTH = 6


class Computed(list):
    """The batches that were computed; states are the token ids and the number of the batch's examples."""

    def __call__(self, examples):
        self.append(list(examples))
        flat = [torch.tensor(list(itertools.chain(*example.sequences)), dtype=torch.float32) for example in examples]
        return [ids.unsqueeze(1) + torch.linspace(0, len(examples), WIDTH) for ids in flat]


@pytest.fixture
def remember(tmp_path):
    """A function `(rows, dtype)` that makes a memory with room for so many rows, and what it computed."""

    def make(rows: int = 1000, tokens: int = 16):
        computed = Computed()
        memory = TrunkMemory(
            [TRAIN, DEV], computed, tokens=tokens, room=rows * WIDTH * 4, folder=tmp_path / "not there yet"
        )
        computed.clear()
        return memory, computed

    return make


def batch_of(memory, examples):
    batch = Collator(0)(examples)
    numbers = [memory.numbers[example.sequences] for example in examples]
    return batch, memory.states(numbers, tuple(batch["input_ids"].shape))


def test_states_stand_where_the_batch_has_the_tokens(remember):
    memory, _ = remember()
    batch, states = batch_of(memory, [DEV[1], TRAIN[0]])
    assert states.shape == (*batch["input_ids"].shape, WIDTH)
    assert torch.equal(states[..., 0].long(), batch["input_ids"])
    assert not states[~batch["attention_mask"].bool()].any()


def test_each_text_is_computed_once_and_one_of_two_sets_is_one(remember):
    memory, computed = remember()
    assert len(memory.numbers) == 5
    for _ in range(2):
        for examples in (TRAIN[:2], DEV, TRAIN):
            batch_of(memory, examples)
    texts = [example.sequences for batch in computed for example in batch]
    assert len(texts) == len(set(texts)) == 5
    memory.forget()
    batch_of(memory, DEV)
    assert len(computed) > 5 // 2


def test_what_is_computed_together_does_not_depend_on_the_order(remember):
    (one, first), (other, second) = remember(), remember()
    expected = [batch_of(one, [example])[1] for example in (*TRAIN, *DEV)]
    states = [batch_of(other, [example])[1] for example in reversed((*TRAIN, *DEV))]
    assert all(map(torch.equal, expected, reversed(states)))
    assert sorted(map(len, first)) == sorted(map(len, second))
    assert max(map(len, first)) > 1


@pytest.mark.parametrize("rows", [0, 15, 1000])
def test_what_memory_has_no_room_for_lies_in_a_file_without_a_name(remember, tmp_path, rows):
    everything, (memory, _) = remember()[0], remember(rows)
    total = everything.in_memory
    assert memory.in_memory <= rows * WIDTH * 4
    assert memory.in_memory + memory.in_file == total
    assert (memory.in_file > 0) == (rows < 1000)
    for _ in range(2):
        for example in (*TRAIN, *DEV):
            assert torch.equal(batch_of(memory, [example])[1], batch_of(everything, [example])[1])
    assert (tmp_path / "not there yet").exists() == (rows < 1000)
    assert not list(tmp_path.rglob("*trunk*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process of its own is killed")
def test_no_file_is_left_by_a_process_that_is_killed(tmp_path):
    child = os.fork()
    if not child:
        try:
            _mapped(tmp_path / "run", 1 << 16)[0] = 1
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert list(tmp_path.rglob("*")) == [tmp_path / "run"]


def test_a_folder_that_cannot_be_written_is_one_clear_line(remember, tmp_path):
    (tmp_path / "not there yet").write_text("a file")
    memory, _ = remember(rows=0)
    with pytest.raises(InputError, match=r"trunk_cache_gb: the .* bytes beyond it do not fit into"):
        batch_of(memory, TRAIN)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packs", [True, False])
def test_scores_from_remembered_states_are_those_of_all_blocks(make_model, tmp_path, packs, dtype):
    model = make_model(dtype=dtype)
    scorer, first = OptionScorer(model), list(blocks_of(model))[1]
    scorer.packs = packs
    assert scorer.can_skip(model, first)
    compute = states_by(scorer, model, first, Collator(0))
    memory = TrunkMemory([MIXED], compute, tokens=40, room=2000, folder=tmp_path)
    batch, states = batch_of(memory, MIXED)
    scores = scorer.scores(model, {**batch, "states": states, "states_at": first})
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(scores, scorer.scores(model, batch), rtol=tolerance, atol=tolerance)
    seen = []
    next(iter(blocks_of(model).values())).register_forward_hook(lambda _, args, output: seen.append(output is args[0]))
    scorer.scores(model, {**batch, "states": states, "states_at": first})
    assert seen == [True]
