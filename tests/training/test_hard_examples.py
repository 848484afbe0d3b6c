"""`--xgblora_hard_examples`: what is drawn, with which weights, and that a run which was stopped draws the same."""

import pytest
import torch
from torch import nn

from xgblora.errors import InputError
from xgblora.training.hard_examples import HardExamples, weighing

ROUNDS = ("--xgblora", "--xgblora_steps_per_iteration=3", "--max_steps=10", "--num_dev=0", "--save_strategy=steps")
HARD = (*ROUNDS, "--save_steps=1", "--xgblora_hard_examples=0.5", "--xgblora_reinit=residual")


def seen(hard: HardExamples, rounds: list[int], losses: torch.Tensor) -> list[list[int]]:
    """The examples of one batch after the other, each of a round; a loss is always that of `losses`."""
    drawn = []
    for number, round in enumerate(rounds):
        indices, batch = hard.indices(number), hard.weighted({})
        hard.see(losses[indices] * batch["weights"], batch, round)
        drawn.append(indices.tolist())
    return drawn


def test_the_share_is_what_is_drawn_and_from_the_fifth_with_the_highest_losses():
    hard, losses = HardExamples(20, 8, 0.5, seed=3, ahead=2), torch.arange(20.0).roll(7)
    drawn = seen(hard, [1] * 3 + [2] * 12, losses)
    hardest = set(losses.argsort()[-4:].tolist())
    assert sorted(index for batch in drawn[:3] for index in batch) == list(range(20)), "as ever, without a loss"
    assert [len(batch) for batch in drawn[:3]] == [8, 8, 4]
    for number, batch in enumerate(drawn[5:], start=5):
        half = len(batch) // 2
        assert set(batch[:half]) <= hardest
        assert batch[half:] == hard._drawn_as_ever(number)[half:].tolist()
    assert len({tuple(batch) for batch in drawn}) == len(drawn)


def test_the_weights_keep_the_expectation():
    hard, losses = (
        HardExamples(50, 10, 0.4, seed=1, ahead=2),
        torch.rand(50, generator=torch.Generator().manual_seed(0)),
    )
    seen(hard, [1] * 5 + [2] * 2, losses)
    sums = []
    for number in range(10, 2010):
        hard._number = number
        batch = hard.weighted({})
        sums.append((losses[hard.indices(number)] * batch["weights"]).mean())
    assert torch.stack(sums).mean().item() == pytest.approx(losses.mean().item(), rel=0.01)
    assert {round(weight, 4) for weight in batch["weights"].tolist()} <= {round(1 / 2.6, 4), round(1 / 0.6, 4)}


def test_what_was_found_hard_counts_from_the_first_batch_that_nobody_has_fetched():
    hard, losses = HardExamples(20, 4, 0.5, seed=3, ahead=2), torch.arange(20.0)
    seen(hard, [1] * 5, losses)
    fetched = [hard.indices(number).tolist() for number in (5, 6)]
    seen_by_now = hard.weighted({})
    hard.see(torch.ones(4) * seen_by_now["weights"], seen_by_now, 2)
    assert [hard.indices(number).tolist() for number in (5, 6)] == fetched
    assert set(hard.indices(7)[:2].tolist()) <= {16, 17, 18, 19}


def test_the_state_goes_into_a_file_and_out_again(tmp_path):
    ours, losses = HardExamples(20, 4, 0.5, seed=3, ahead=2), torch.rand(20)
    seen(ours, [1] * 5 + [2], losses)
    ours.save(tmp_path / "state.safetensors")
    theirs = HardExamples(20, 4, 0.5, seed=3, ahead=2)
    theirs.load(tmp_path / "state.safetensors")
    for number in (5, 6, 7, 8):
        assert torch.equal(ours.indices(number), theirs.indices(number))
    assert torch.equal(ours.weighted({})["weights"], theirs.weighted({})["weights"])
    assert torch.equal(ours._hardest(), theirs._hardest())


def test_losses_that_are_no_numbers_are_not_hard_and_a_loss_for_all_is_refused():
    hard = HardExamples(10, 5, 0.5, seed=3, ahead=2)
    seen(hard, [1, 1], torch.tensor([float("nan")] * 5 + [1.0] * 5))
    assert hard._hardest().tolist() == [5]
    with pytest.raises(InputError, match=r"^xgblora_hard_examples: the objective must return one loss an example$"):
        hard.see(torch.tensor(1.0), hard.weighted({}), 1)


def test_a_batch_without_weights_has_the_losses_that_it_had():
    def objective(model, batch):
        assert list(batch) == ["x"]
        return batch["x"]

    weighed, x = weighing(objective), torch.rand(3)
    assert weighed(nn.Identity(), {"x": x}) is x
    weights = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(weighed(nn.Identity(), {"x": x, "weights": weights}), x * weights)


@pytest.mark.parametrize(
    "more", [["--zo_pairing=paired"], ["--zo_pairing=sequential", "--gradient_accumulation_steps=2"]], ids=str
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(run, run_in, tmp_path, more):
    flags = (*HARD, *more)
    whole = run(*flags)
    assert "Hard examples: 2 of a batch of 4, of the hardest 20%, weighted" in whole.log
    # in a round, at a merge, in the next one where batches of before are still drawn, at the end of an epoch
    for step in (2, 3, 4, 6):
        checkpoint = whole.folder / f"checkpoint-{step}"
        resumed = run_in(tmp_path / str(step), *flags, f"--resume_from_checkpoint={checkpoint}")
        assert resumed.losses == whole.losses[step:]
        assert (resumed.folder / "tape.bin").read_bytes() == (whole.folder / "tape.bin").read_bytes()


def test_without_it_the_order_is_transformers_own_and_with_it_another(run):
    without = run(*ROUNDS, "--save_steps=100", "--xgblora_reinit=residual")
    explicit = run(*ROUNDS, "--save_steps=100", "--xgblora_reinit=residual", "--xgblora_hard_examples=0")
    assert without.losses == explicit.losses
    assert run(*HARD, "--zo_pairing=paired").losses != without.losses


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--xgblora_hard_examples=1"], "xgblora_hard_examples=1.0: must be 0 or more and below 1"),
        (["--xgblora_hard_examples=0.5", "--lora"], "xgblora_hard_examples=0.5: plain LoRA has no rounds"),
        (
            ["--xgblora_hard_examples=0.5", "--dataloader_num_workers=1"],
            "dataloader_num_workers=1: --xgblora_hard_examples draws the batches",
        ),
    ],
)
def test_what_it_cannot_go_with_is_refused(tmp_path, flags, said):
    from xgblora.cli.train import parse

    with pytest.raises(InputError, match=said):
        parse([*flags, f"--output_dir={tmp_path}"])
