"""Advice while there is time: what it looks at, and that it is said once."""

from dataclasses import replace

import pytest
import torch

from xgblora.boosting.ledger import MergedAdapter
from xgblora.tape import StepRecord
from xgblora.training import advice
from xgblora.training.advice import Observed


def steps(*projected_grads: float, applied: bool = True) -> list[StepRecord]:
    return [StepRecord(number, 1e-3, 0, (value,), applied) for number, value in enumerate(projected_grads)]


HEALTHY = Observed(
    losses=[0.75 - 0.01 * number for number in range(20)],
    steps=steps(*(1.0, -1.5) * 50),
    rate=1e-3,
    eps=1e-3,
    dtype="float16",
    max_steps=800,
    optimizer="sgd",
    normalised=False,
    reach=2.0,
)


@pytest.mark.parametrize("look", advice.LOOKS)
def test_a_healthy_run_gets_none(look):
    assert look(HEALTHY) is None


@pytest.mark.parametrize("look", advice.LOOKS)
def test_nothing_is_said_of_nothing(look):
    assert look(replace(HEALTHY, losses=[], steps=[])) is None


@pytest.mark.parametrize(
    ("look", "seen", "said"),
    [
        (
            advice.not_finite,
            {"steps": [*steps(*[1.0] * 90), *steps(*[0.0] * 10, applied=False)]},
            "10 of the last 100 steps had a loss that is not finite, and moved nothing; try --learning_rate 0.0003",
        ),
        (
            advice.tied,
            {"steps": steps(*[0.0] * 25, *[1.0] * 75)},
            "in 25 of the last 100 directions the perturbed losses are the same, which moves nothing: eps is below "
            "what float16 weights or the objective can tell apart; try --zo_eps 0.01",
        ),
        (
            advice.far_apart,
            {"eps": 1e-1, "steps": steps(*(2.0, -2.0) * 10)},
            "the perturbed losses differ by 0.4 where the loss is 0.56, too far for a slope; try --zo_eps 0.01",
        ),
        (
            advice.rises,
            {"losses": [0.5, 0.6] * 3 + [0.8, 0.9] * 3},
            "the loss rose from 0.533 to 0.867; try --learning_rate 0.0003",
        ),
        (
            advice.too_slow,
            {"rate": 1e-6, "steps": steps(*(1.0, -2.0) * 10)},
            "by the projected gradients so far 800 steps lower the loss of 0.56 by 0.002 at most; try "
            "--learning_rate 1e-05",
        ),
    ],
)
def test_a_line_says_what_was_seen_and_what_to_try(look, seen, said):
    assert look(replace(HEALTHY, **seen)) == said


@pytest.mark.parametrize(
    ("look", "seen"),
    [
        (advice.not_finite, {"steps": [*steps(*[1.0] * 91), *steps(*[0.0] * 9, applied=False)]}),
        # steps that were skipped have a zero too
        (advice.tied, {"steps": [*steps(*[1.0] * 90), *steps(*[0.0] * 90, applied=False)]}),
        (advice.far_apart, {"eps": 1e-1, "steps": steps(*(2.0, -2.0) * 10), "reach": 1.0}),
        (advice.far_apart, {"eps": 1e-1, "steps": steps(*(2.0, -2.0) * 10), "normalised": True}),
        # noise alone, and too few to know
        (advice.rises, {"losses": [0.2, 0.9, 0.5] * 2 + [0.3, 0.9, 0.6] * 2}),
        (advice.rises, {"losses": [0.5] * 5 + [0.9] * 5}),
        (advice.too_slow, {"rate": 1e-6, "steps": steps(*(0.0, 1.0) * 10)}),
        (advice.too_slow, {"rate": 1e-6, "optimizer": "adam"}),
        (advice.too_slow, {"rate": 1e-6, "normalised": True}),
    ],
)
def test_it_holds_its_tongue_where_it_cannot_know(look, seen):
    assert look(replace(HEALTHY, **seen)) is None


def rounds(*losses: float | None) -> list[MergedAdapter]:
    adapter = torch.zeros(1)
    return [
        MergedAdapter(round=number, step=number, epoch=0.0, scale=1.0, adapters=adapter, held_out_loss=loss)
        for number, loss in enumerate(losses, start=1)
    ]


def test_three_rounds_that_brought_nothing():
    assert advice.stalled(rounds(0.5, 0.4, 0.41, 0.42)) is None
    assert advice.stalled(rounds(0.5, 0.4, 0.41, None, 0.42, 0.4)) == (
        "3 rounds brought nothing since round 2 (held-out loss 0.4000); try --early_stopping_rounds 3, or a smaller "
        "--learning_rate"
    )
    assert advice.stalled(rounds(None, None, None)) is None


class TestRuns:
    """Advice in a run."""

    FLAGS = ("--max_steps=160", "--xgblora_steps_per_iteration=80", "--eval_strategy=no", "--save_model=false")

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (("--learning_rate=1e-10",), "lower the loss of"),
            (("--zo_eps=1e-12",), "the perturbed losses are the same"),
            (("--learning_rate=1e-3",), None),
        ],
    )
    def test_it_is_said_once(self, run, flags, said):
        lines = [line for line in run(*self.FLAGS, *flags).log if line.startswith("Advice: ")]
        assert [said in line for line in lines] == ([True] if said else [])

    def test_a_round_that_brings_nothing_three_times(self, run):
        flags = ("--max_steps=12", "--xgblora_steps_per_iteration=2", "--staged_eval", "--learning_rate=0")
        lines = [line for line in run(*flags, "--save_model=false").log if line.startswith("Advice: ")]
        assert [line.partition(" (")[0] for line in lines] == ["Advice: 3 rounds brought nothing since round 1"]
