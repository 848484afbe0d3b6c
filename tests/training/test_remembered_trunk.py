"""A run that remembers hidden states: the losses of one that does not, and each text below the adapters once."""

import itertools
import logging

import pytest
import torch

from xgblora.cli.train import parse
from xgblora.runs.plan import plan
from xgblora.runs.prepare import prepare
from xgblora.scoring.blocks import blocks_of
from xgblora.training.remembered_trunk import SHARE, remembered_trunk, room_of

UPPER = ("--xgblora_layers=0.5:1.0", "--xgblora_steps_per_iteration=3", "--eval_steps=3", "--staged_eval")


@pytest.fixture
def make(tiny_flags, tmp_path):
    """A function `(*flags)` that makes the trainer of a run of 9 steps, in a folder of its own."""
    numbers = itertools.count()

    def trainer(*flags: str):
        folder = f"--output_dir={tmp_path / f'run{next(numbers)}'}"
        return prepare(plan(*parse([*tiny_flags, "--max_steps=9", folder, *flags]))).trainer

    return trainer


def losses(trainer) -> tuple[list[float], list[float]]:
    """Of the steps, as they are logged, and of the development set."""
    history = trainer.state.log_history
    return [entry["loss"] for entry in history if "loss" in entry], [
        e["eval_loss"] for e in history if "eval_loss" in e
    ]


@pytest.mark.parametrize("more", [(), ("--zo_pairing=sequential",), ("--xgblora_shrinkage=line_search",)])
def test_losses_are_those_of_a_run_that_remembers_nothing(make, more):
    runs = []
    for flags in (("--trunk_cache_gb=0",), (), ("--trunk_cache_gb=1e-6",)):
        trainer = make("--logging_steps=1", *UPPER, *flags, *more)
        trainer.train()
        runs.append(losses(trainer))
        assert (trainer.trunk is None) == (flags == ("--trunk_cache_gb=0",))
    plain, in_memory, in_file = runs
    assert len(plain[0]) == 9
    assert in_memory == in_file
    for ours, theirs in zip(in_memory, plain, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_the_blocks_below_see_each_text_once_with_evaluations_and_line_search(make):
    trainer = make(*UPPER, "--xgblora_shrinkage=line_search")
    rows, compute = [], trainer.trunk.memory._compute
    first = next(iter(blocks_of(trainer.model).values()))
    first.fc1.register_forward_hook(lambda _, args, output: rows.append(output[..., 0].numel()))
    trainer.trunk.memory._compute = lambda examples: rows.append(f"{len(examples)} texts") or compute(examples)
    trainer.train()
    asked = [row for row in rows if isinstance(row, str)]
    assert len(rows) == 2 * len(asked), "the block runs where states are computed, and nowhere else"
    assert sum(int(row.split()[0]) for row in asked) == len(trainer.trunk.memory.numbers) == 16


def test_what_is_remembered_is_said_with_its_size(make):
    trunk = make(*UPPER).trunk
    tokens = sum(sum(map(len, sequences)) for sequences in trunk.memory.numbers)
    assert trunk.memory.in_memory == tokens * 32 * 4
    assert str(trunk).startswith("16 texts at model.decoder.layers.1: ")
    assert "in a file" not in str(trunk)
    assert make(*UPPER, "--trunk_cache_gb=1e-6").trunk.memory.in_memory <= 1000


def test_nothing_is_remembered_where_nothing_runs_below_the_adapters_or_all_is_trained(make):
    for flags in ((), ("--full",), ("--trainer=regular", *UPPER), ("--trunk_cache_gb=0", *UPPER)):
        assert make(*flags).trunk is None


def test_an_objective_of_one_s_own_is_said_to_remember_nothing(make, caplog):
    trainer = make(*UPPER)
    with caplog.at_level(logging.INFO, logger="xgblora"):
        assert remembered_trunk(trainer, lambda model, batch: torch.zeros(1), "model.decoder.layers.1") is None
    assert "No hidden states are remembered" in caplog.text


def test_a_quarter_of_what_is_free_unless_a_flag_says_how_much(monkeypatch):
    monkeypatch.setattr("xgblora.training.remembered_trunk.free_memory", lambda: 1000)
    assert room_of(None) == SHARE * 1000
    assert room_of(0.5) == 500_000_000
    monkeypatch.setattr("xgblora.training.remembered_trunk.free_memory", lambda: None)
    assert room_of(None) == 1 << 30
