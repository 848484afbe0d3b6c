"""Measuring every boosting round, and keeping the best one."""

import pytest
import torch
from matplotlib import image

from xgblora.boosting import Ledger
from xgblora.tape import RollbackRecord, Tape
from xgblora.training import best_round

# two rounds and a half, no evaluation but those of the rounds
ROUNDS = ("--xgblora_steps_per_iteration=4", "--max_steps=10", "--eval_strategy=no")
# steps so large that the loss rises: the best round is an early one
DIVERGING = (*ROUNDS, "--learning_rate=0.1", "--load_best_round_at_end")
# Adam's first steps lower the loss: the best round is the adapter that is still in training
FALLING = (*ROUNDS, "--trainer=regular", "--load_best_round_at_end")
SAVING = ("--save_strategy=steps", "--save_steps=3")


def losses_by_round(run) -> dict[int, float]:
    return {entry["round"]: entry["held_out_loss"] for entry in run.entries("merges.jsonl")}


def assert_same_weights(ours, theirs) -> None:
    expected = theirs.weights()
    for name, weight in ours.weights().items():
        assert torch.equal(weight, expected[name]), name


class TestStagedEvaluation:
    """--staged_eval."""

    def test_every_merge_is_evaluated_at_its_step(self, run):
        staged = run(*ROUNDS, "--staged_eval", rendered=True)
        evaluated = {entry["step"]: entry["eval_loss"] for entry in staged.entries("eval_loss.jsonl")}
        assert list(evaluated) == [4, 8]
        assert losses_by_round(staged) == {1: evaluated[4], 2: evaluated[8]}

    def test_it_changes_nothing_of_the_training(self, run):
        staged, plain = run(*ROUNDS, "--staged_eval", rendered=True), run(*ROUNDS)
        assert staged.losses == plain.losses
        assert_same_weights(staged, plain)

    def test_the_rounds_are_drawn(self, run):
        pixels = image.imread(run(*ROUNDS, "--staged_eval", rendered=True).folder / "rounds.png", format="png")
        assert pixels.shape[0] > 300
        assert pixels.std() > 0
        assert not (run(*ROUNDS).folder / "rounds.png").exists()

    def test_they_are_drawn_after_resuming_in_another_folder_too(self, run, run_in, tmp_path):
        """There eval_loss.jsonl begins at the checkpoint, after the first round."""
        whole = run(*ROUNDS, *SAVING, "--staged_eval", rendered=True)
        checkpoint = f"--resume_from_checkpoint={whole.folder / 'checkpoint-6'}"
        resumed = run_in(tmp_path / "resumed", *ROUNDS, *SAVING, "--staged_eval", checkpoint, rendered=True)
        assert losses_by_round(resumed) == losses_by_round(whole)
        assert (resumed.folder / "rounds.png").read_bytes() == (whole.folder / "rounds.png").read_bytes()

    def test_a_round_that_was_not_measured_is_a_gap_in_the_figure(self, run, run_in, tmp_path):
        checkpoint = run(*ROUNDS, *SAVING).folder / "checkpoint-6"
        resumed = run_in(
            tmp_path / "resumed", *ROUNDS, *SAVING, "--staged_eval", f"--resume_from_checkpoint={checkpoint}"
        )
        assert losses_by_round(resumed)[1] is None
        assert (resumed.folder / "rounds.png").exists()


class TestBestRound:
    """--load_best_round_at_end."""

    def test_the_run_goes_back_to_the_round_with_the_lowest_loss(self, run):
        best = run(*DIVERGING)
        losses = losses_by_round(best)
        kept = min(losses, key=losses.get)
        assert best.metrics["training"]["best_round"] == kept
        assert best.metrics["results"]["trained"]["dev"]["loss"] == pytest.approx(losses[kept], rel=1e-6)
        assert [booster.round for booster in Ledger.load(best.folder / "boosters.safetensors").boosters] == [
            *range(1, kept + 1)
        ]
        # what happened is still told whole
        assert list(losses) == [1, 2]
        assert len(best.losses) == 10

    def test_the_tape_goes_back_too(self, run):
        best = run(*DIVERGING)
        records = list(Tape.load(best.folder / "tape.bin").records())
        assert [record for record in records if isinstance(record, RollbackRecord)] == [
            RollbackRecord(best.metrics["training"]["best_round"])
        ]

    def test_the_adapter_still_in_training_counts_as_the_last_round(self, run):
        best = run(*FALLING)
        losses = losses_by_round(best)
        trained = best.metrics["results"]["trained"]["dev"]["loss"]
        assert best.metrics["training"]["best_round"] == 3
        assert trained < min(losses.values())
        boosters = Ledger.load(best.folder / "boosters.safetensors").boosters
        assert [booster.step for booster in boosters] == [4, 8, 10]
        assert boosters[-1].held_out_loss == trained

    def test_of_equal_rounds_the_first_is_kept_even_before_the_adapter_in_training(self, run_in, tmp_path, monkeypatch):
        lowest = min(losses_by_round(run_in(tmp_path / "first", *FALLING)).values())
        monkeypatch.setattr(best_round, "_held_out_loss_now", lambda trainer: lowest)
        tied = run_in(tmp_path / "tied", *FALLING)
        losses = losses_by_round(tied)
        kept = tied.metrics["training"]["best_round"]
        assert losses[kept] == lowest
        assert len(Ledger.load(tied.folder / "boosters.safetensors")) == kept < 3

    def test_rounds_whose_loss_is_not_finite_are_not_kept(self, run_in, tmp_path, monkeypatch):
        monkeypatch.setattr(best_round, "_held_out_loss_now", lambda trainer: float("nan"))
        assert run_in(tmp_path / "run", *FALLING).metrics["training"]["best_round"] < 3

    @pytest.mark.parametrize("flags", [DIVERGING, FALLING], ids=["diverging", "falling"])
    @pytest.mark.parametrize("step", [6, 9, 10])
    def test_a_resumed_run_keeps_the_same_round(self, run, run_in, tmp_path, flags, step):
        whole = run(*flags, *SAVING)
        checkpoint = whole.folder / f"checkpoint-{step}"
        resumed = run_in(tmp_path / "resumed", *flags, *SAVING, f"--resume_from_checkpoint={checkpoint}")
        assert resumed.metrics["training"]["best_round"] == whole.metrics["training"]["best_round"]
        assert losses_by_round(resumed) == losses_by_round(whole)
        assert (resumed.folder / "boosters.safetensors").read_bytes() == (
            whole.folder / "boosters.safetensors"
        ).read_bytes()
        assert_same_weights(resumed, whole)

    @pytest.mark.parametrize(
        "flags, said",
        [
            (["--num_dev=0"], "num_dev=0"),
            (["--lora"], "plain LoRA has no rounds"),
            (["--load_best_model_at_end", "--save_strategy=steps", "--eval_strategy=steps"], "choose one of them"),
        ],
    )
    def test_flags_that_contradict_it_are_refused_in_one_line(self, run_in, tmp_path, capsys, flags, said):
        with pytest.raises(SystemExit) as exit:
            run_in(tmp_path / "run", *ROUNDS, "--load_best_round_at_end", *flags)
        assert exit.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
        assert not (tmp_path / "run").exists()
