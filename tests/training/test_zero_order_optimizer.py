"""What the state of the zeroth-order optimizer carries over to a run that goes on."""

import pytest

UPPER = ("--xgblora_layers=0.5:1.0", "--trunk_cache_gb=0")
FLAGS = ("--max_steps=6", "--xgblora_steps_per_iteration=2", "--save_strategy=steps", "--save_steps=3")


@pytest.mark.parametrize(
    ("flags", "trial"),
    [
        ((), "xgblora.zo.zero_order.same_losses"),
        (("--trainer=population", "--members=4"), "xgblora.training.population_step.same_losses"),
    ],
)
def test_a_run_goes_on_as_its_trial_decided(run_in, tmp_path, monkeypatch, flags, trial):
    """A trial at the weights of the checkpoint might decide otherwise: it is not made again."""
    flags = (*FLAGS[:1], *FLAGS[2:], *flags) if flags else FLAGS
    whole = run_in(tmp_path / "whole", *flags)
    assert "one after the other" not in "\n".join(whole.log)
    monkeypatch.setattr(trial, lambda *arguments: False)
    other = run_in(tmp_path / "other", *flags)
    assert "one after the other" in "\n".join(other.log)
    resumed = run_in(tmp_path / "resumed", *flags, f"--resume_from_checkpoint={whole.folder / 'checkpoint-3'}")
    assert "one after the other" not in "\n".join(resumed.log)
    assert resumed.losses == whole.losses[3:]


def test_a_run_goes_on_skipping_blocks_as_its_trial_decided(run_in, tmp_path, monkeypatch):
    flags, alone = (*FLAGS, *UPPER), "Every copy of a batch runs all layers"
    whole = run_in(tmp_path / "whole", *flags)
    monkeypatch.setattr("xgblora.scoring.trunk.agree", lambda *arguments: False)
    other = run_in(tmp_path / "other", *flags)
    resumed = run_in(tmp_path / "resumed", *flags, f"--resume_from_checkpoint={whole.folder / 'checkpoint-3'}")
    assert [alone in "\n".join(run.log) for run in (whole, other, resumed)] == [False, True, False]
    assert resumed.losses == whole.losses[3:]
