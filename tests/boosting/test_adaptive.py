"""The adaptive rule on made-up losses, and keeping and taking adapters on a toy."""

import math

import pytest
import torch

import xgblora
from xgblora.adapters.identity import trained_hash
from xgblora.boosting import AdaptiveMerging, AdaptiveRule
from xgblora.boosting.adaptive import AdaptiveRound
from xgblora.boosting.finish import finish
from xgblora.errors import InputError
from xgblora.replaying import rebuild, replay
from xgblora.tape import KeepRecord, MergeRecord, TakeRecord, Tape

NAN, INF = math.nan, math.inf


def played(rule: AdaptiveRule, losses: list[float], *, start: float = 1.0, every: int = 10) -> tuple[int | None, int]:
    """(the step at which a round from step 100 ends, the step that is kept), an evaluation every 10 steps."""
    state = AdaptiveRound.begin(100, start, 100)
    for number, loss in enumerate(losses, start=1):
        state.observe(rule, 100 + every * number, loss)
        if state.is_over(rule):
            return state.judged_step, state.kept_step
    return None, state.kept_step


PLAIN = AdaptiveRule(ema=0.0, patience=2, threshold=0.0)


@pytest.mark.parametrize(
    ("rule", "losses", "ended"),
    [
        (PLAIN, [0.9, 0.8, 0.7], (None, 130)),
        (PLAIN, [0.9, 0.8, 0.85, 0.7], (None, 140)),
        (PLAIN, [0.9, 0.8, 0.8, 0.8], (140, 120)),
        (PLAIN, [1.1, 1.0], (120, 100)),
        (AdaptiveRule(ema=0.0, patience=1, threshold=0.0), [0.9, 0.91], (120, 110)),
        # less than a tenth below the lowest does not count, and yet it is the best
        (AdaptiveRule(ema=0.0, patience=2, threshold=0.1), [0.91, 0.905], (120, 120)),
        (AdaptiveRule(ema=0.0, patience=2, threshold=0.1), [0.91, 0.89, 0.88, 0.87], (140, 140)),
        # a spike that the average does not follow below the start again
        (AdaptiveRule(ema=0.5, patience=2, threshold=0.0), [0.8, 1.4, 0.95], (130, 110)),
        (AdaptiveRule(ema=0.0, patience=3, threshold=0.0), [0.8, 1.4, 0.95], (None, 110)),
        (AdaptiveRule(ema=0.0, patience=1, threshold=0.0, min_steps=30), [1.1, 1.1, 1.1], (130, 100)),
        (AdaptiveRule(ema=0.0, patience=9, threshold=0.0, max_steps=25), [0.9, 0.8, 0.7], (130, 130)),
        # a loss that is not finite is no improvement and does not stay in the average
        (AdaptiveRule(ema=0.5, patience=2, threshold=0.0), [NAN, 0.9, INF, 0.8], (None, 140)),
        (AdaptiveRule(ema=0.5, patience=2, threshold=0.0), [NAN, INF], (120, 100)),
    ],
)
def test_when_a_round_ends_and_what_it_keeps(rule, losses, ended):
    assert played(rule, losses) == ended


def test_the_threshold_is_relative_also_below_zero():
    rule = AdaptiveRule(ema=0.0, patience=1, threshold=0.1)
    assert played(rule, [-1.05], start=-1.0) == (110, 110)
    assert played(rule, [-1.15], start=-1.0) == (None, 110)


@pytest.mark.parametrize("start", [NAN, INF])
def test_a_start_that_is_not_finite_is_worse_than_anything(start):
    assert played(AdaptiveRule(), [5.0, 4.0], start=start) == (None, 120)


def test_the_smoothed_loss_is_the_exponential_average_from_the_start_on():
    state = AdaptiveRound.begin(0, 1.0, 0)
    for step, loss in ((1, 0.5), (2, 0.25)):
        state.observe(AdaptiveRule(ema=0.75), step, loss)
    assert state.smoothed == 0.75 * (0.75 * 1.0 + 0.25 * 0.5) + 0.25 * 0.25
    assert state.loss == 0.25


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"ema": 1.0}, "xgblora_adaptive_ema=1.0: must be 0 or more and below 1"),
        ({"ema": NAN}, "xgblora_adaptive_ema=nan: must be"),
        ({"patience": 0}, "xgblora_adaptive_patience=0: must be 1 or more"),
        ({"threshold": -0.1}, "xgblora_adaptive_threshold=-0.1: must be 0 or more"),
        ({"threshold": NAN}, "xgblora_adaptive_threshold=nan: must be 0 or more"),
        ({"min_steps": -1}, "xgblora_adaptive_min_steps=-1: must be 0 or more"),
        ({"max_steps": -1}, "xgblora_adaptive_max_steps=-1: must be 0 or more"),
        (
            {"min_steps": 9, "max_steps": 8},
            "xgblora_adaptive_max_steps=8: must be xgblora_adaptive_min_steps=9 or more",
        ),
    ],
)
def test_numbers_out_of_range_are_refused_by_the_name_of_their_flag(numbers, said):
    with pytest.raises(InputError) as error:
        AdaptiveRule(**numbers)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("numbers", "most"),
    [
        ({"patience": 2}, 20),
        ({"patience": 3}, 14),
        ({"min_steps": 100}, 10),
        ({"max_steps": 25}, 40),
        ({"max_steps": 900}, 39),
    ],
)
def test_how_many_rounds_there_may_be_in_1000_steps_evaluated_every_25(numbers, most):
    assert AdaptiveRule(**numbers).most_rounds(1000, 25) == most


class TestOnAToy:
    """Zeroth-order training whose evaluations are made up: the third is the best, then the rule gives up."""

    LOSSES = (0.9, 0.8, 0.6, 0.9, 0.9, 0.7)

    @pytest.fixture(params=["sgd", "adam"])
    def trained(self, request, make_toy):
        adapters = xgblora.attach(make_toy(), ["first", "second"], alpha=2.0, seed=5)
        booster = xgblora.Booster(adapters)
        zo = xgblora.ZeroOrder(
            adapters, lambda model, batch: model(batch["x"]), eps=1e-2, lr=0.05, seed=5, optimizer=request.param
        )
        xgblora.start_tape(zo, booster)
        merging = AdaptiveMerging(booster, AdaptiveRule(ema=0.0, patience=2))
        merging.observe(0, 1.0, last=False)
        seen = []
        for step, loss in enumerate(self.LOSSES, start=1):
            zo.step({"x": torch.randn(4, 5, generator=torch.Generator().manual_seed(step))})
            seen.append(adapters.arena.master.clone())
            if merging.observe(step, loss, last=False):
                ended = merging.round
                merging.take()
                booster.merge(step=step, held_out_loss=ended.loss)
                merging.begin(step, ended.loss, ended.kept_step)
        return booster, merging, seen

    def test_the_best_adapter_is_merged(self, trained):
        booster, merging, seen = trained
        (merged,) = booster.ledger.boosters
        assert (merged.step, merged.held_out_loss) == (5, 0.6)
        assert torch.equal(merged.adapters, seen[2])
        assert not torch.equal(merged.adapters, seen[4])
        assert (merging.round.start_step, merging.round.kept_step, merging.round.loss) == (5, 3, 0.6)

    def test_the_tape_and_the_ledger_reproduce_the_weights(self, trained, make_toy, tmp_path):
        booster, _, _ = trained
        master = booster.adapters.arena.master.clone()
        moments = {name: moment.clone() for name, moment in booster.adapters.arena.moments.items()}
        stopped, verified = replay(make_toy(), booster.tape)
        assert not verified
        assert torch.equal(stopped.adapters.arena.master, master)
        assert all(torch.equal(stopped.adapters.arena.moments[name], moment) for name, moment in moments.items())
        finish(booster.adapters, booster, step=6, epoch=1.0)
        booster.tape.save(tmp_path / "tape.bin")
        again, verified = replay(make_toy(), Tape.load(tmp_path / "tape.bin"))
        assert verified
        from_ledger = rebuild(make_toy(), booster.ledger)
        assert trained_hash(from_ledger.adapters) == trained_hash(again.adapters) == trained_hash(booster.adapters)

    def test_the_tape_has_a_keep_for_each_start_and_each_best_and_a_take_before_the_merge(self, trained):
        booster, _, _ = trained
        records = [r for r in booster.tape.records() if isinstance(r, KeepRecord | TakeRecord | MergeRecord)]
        # start, steps 1 to 3, the end of the round, the next start
        keeps = [KeepRecord()] * 4
        merge = next(record for record in records if isinstance(record, MergeRecord))
        assert records == [*keeps, TakeRecord(), merge, KeepRecord()]

    def test_a_step_counts_once(self, trained):
        _, merging, _ = trained
        before = vars(merging.round).copy()
        assert not merging.observe(6, 0.1, last=True)
        assert vars(merging.round) == before

    def test_the_state_is_read_as_it_was_written(self, trained, tmp_path):
        booster, merging, _ = trained
        merging.round.smoothed = 0.1 + 0.2
        merging.round.lowest = INF
        merging.save(tmp_path / "round.safetensors")
        again = AdaptiveMerging(booster, merging.rule)
        again.load(tmp_path / "round.safetensors")
        assert again.round == merging.round
        assert torch.equal(again.kept, merging.kept)

    def test_a_tape_that_takes_what_it_never_kept_is_refused(self, trained, make_toy):
        booster, _, _ = trained
        tape = Tape(booster.tape.header)
        tape.record_take()
        with pytest.raises(InputError, match="takes an adapter back that it never kept"):
            replay(make_toy(), tape)
