"""The merge policy against a simulation of how transformers counts steps and epochs."""

from itertools import product

import pytest

from xgblora import MergePolicy
from xgblora.boosting import AdaptiveRule
from xgblora.errors import InputError


def optimizer_steps(batches: int, accumulation: int, epochs: int):
    """(step, epoch) after every optimizer step, as `transformers.Trainer` counts them.

    An optimizer step comes after every `accumulation` batches and at the last batch of an epoch, and
    `state.epoch = epoch + (batch + 1) / batches`.
    """
    step = 0
    for epoch in range(epochs):
        for batch in range(batches):
            if (batch + 1) % accumulation == 0 or batch + 1 == batches:
                step += 1
                yield step, epoch + (batch + 1) / batches, batch + 1 == batches


def steps_per_epoch(batches: int, accumulation: int) -> int:
    return -(-batches // accumulation)


@pytest.mark.parametrize(("steps", "frequency"), product(range(6), range(6)))
def test_exactly_one_rule_is_in_force(steps, frequency):
    policy = MergePolicy.from_flags(steps_per_iteration=steps, merge_frequency=frequency)
    for batches, accumulation in product((1, 2, 3, 5, 7, 10, 49), (1, 2, 3, 4)):
        merges, wanted, epoch_ends = [], [], 0
        for step, epoch, last in optimizer_steps(batches, accumulation, epochs=7):
            epoch_ends += last
            if policy.due(step, epoch):
                merges.append(step)
            by_steps = steps > 0 and step % steps == 0
            by_epochs = steps == 0 and frequency > 0 and last and epoch_ends % frequency == 0
            if by_steps or by_epochs:
                wanted.append(step)
            per_epoch = steps_per_epoch(batches, accumulation)
            assert policy.merges_within(step, per_epoch) == len(merges), "a run that is cut here"
        assert merges == wanted


@pytest.mark.parametrize("frequency", range(6))
def test_steps_never_look_at_epochs(frequency):
    policy = MergePolicy.from_flags(steps_per_iteration=3, merge_frequency=frequency)
    for step, epoch in product(range(1, 30), (0.25, 1.0, 2.0, 6.0, 60.0)):
        assert policy.due(step, epoch) == (step in range(3, 30, 3))


@pytest.mark.parametrize("frequency", range(1, 6))
def test_epochs_never_look_at_steps(frequency):
    policy = MergePolicy.from_flags(merge_frequency=frequency)
    for step, epoch in product(range(1, 30), (0.5, 1.0, 1.5, 2.0, 3.999, 4.0, 5.0, 60.0)):
        assert policy.due(step, epoch) == (epoch.is_integer() and epoch % frequency == 0)


def test_without_flags_nothing_is_merged():
    policy = MergePolicy.from_flags()
    assert policy.rule == "none"
    assert not any(policy.due(step, float(epoch)) for step, epoch in product(range(1, 20), range(1, 20)))
    assert policy.merges_within(10_000, 10) == 0


@pytest.mark.parametrize("frequency", [1, 2])
@pytest.mark.parametrize("batches", [3, 7, 1000])
def test_a_run_that_ends_inside_an_epoch_does_not_merge_there(frequency, batches):
    policy = MergePolicy.from_flags(merge_frequency=frequency)
    for step, epoch, last in optimizer_steps(batches, 1, epochs=frequency):
        if not last:
            assert not policy.due(step, epoch)


@pytest.mark.parametrize("flag", ["steps_per_iteration", "merge_frequency"])
@pytest.mark.parametrize("value", [-1, True, False, 1.0, 2.5, "3", None])
def test_only_whole_numbers_from_zero_are_taken(flag, value):
    with pytest.raises(InputError, match=rf"^xgblora_{flag}={value}: must be a whole number, 0 or more$"):
        MergePolicy.from_flags(**{flag: value})


def test_the_flag_that_does_not_count_is_named():
    assert MergePolicy.from_flags(steps_per_iteration=100, merge_frequency=2).ignored == (
        "xgblora_merge_frequency=2 is ignored: merging by steps never merges at epochs"
    )
    assert MergePolicy.from_flags(steps_per_iteration=100).ignored is None
    assert MergePolicy.from_flags(merge_frequency=2).ignored is None
    assert MergePolicy.from_flags().ignored is None


@pytest.mark.parametrize("frequency", [0, 3])
def test_the_adaptive_rule_is_alone_and_never_due_by_counting(frequency):
    policy = MergePolicy.from_flags(merge_frequency=frequency, adaptive=AdaptiveRule())
    assert policy.rule == "adaptive"
    assert not any(policy.due(step, float(epoch)) for step, epoch in product(range(1, 20), range(1, 20)))
    assert policy.merges_within(10_000, 10) is None
    said = f"xgblora_merge_frequency={frequency} is ignored: adaptive merging never merges at epochs"
    assert policy.ignored == (said if frequency else None)


@pytest.mark.parametrize("frequency", [0, 1])
def test_the_adaptive_rule_and_merging_by_steps_is_an_error(frequency):
    with pytest.raises(InputError, match=r"^--xgblora_adaptive_merge and --xgblora_steps_per_iteration 7: choose one"):
        MergePolicy.from_flags(steps_per_iteration=7, merge_frequency=frequency, adaptive=AdaptiveRule())


@pytest.mark.parametrize(
    ("flags", "text", "place"),
    [
        ({"steps_per_iteration": 100}, "merge every 100 steps", "step 300"),
        ({"steps_per_iteration": 1, "merge_frequency": 4}, "merge every step", "step 300"),
        ({"merge_frequency": 3}, "merge every 3 epochs", "epoch 3"),
        ({"merge_frequency": 1}, "merge every epoch", "epoch 3"),
        ({}, "no merge during training", None),
        (
            {"adaptive": AdaptiveRule(ema=0.25, patience=3, min_steps=50, max_steps=400)},
            "merge the round's best when the held-out loss stops improving (EMA 0.25, patience 3, threshold 0.001, "
            "after 50 steps or more, after 400 steps at the latest)",
            "step 300",
        ),
    ],
)
def test_the_words_of_the_log(flags, text, place):
    policy = MergePolicy.from_flags(**flags)
    assert str(policy) == text
    if place:
        assert policy.place(300, 3.0) == place
