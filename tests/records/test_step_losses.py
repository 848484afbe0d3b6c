"""The losses of a run's steps, read back and smoothed."""

import numpy as np

from xgblora.records.step_losses import read, smoothed


def test_they_are_read_as_they_were_written_to_the_last_bit(tmp_path):
    losses = [0.1 + 0.2, 1e-300, float("nan"), float("inf")]
    file = tmp_path / "step_loss.csv"
    file.write_text("step,loss\n" + "".join(f"{step},{loss!r}\n" for step, loss in enumerate(losses, start=5)))
    steps, found = read(file)
    assert steps.tolist() == [5, 6, 7, 8]
    assert np.array_equal(found, losses, equal_nan=True)


def test_a_smoothed_curve_starts_at_its_first_loss_and_passes_over_what_is_none():
    losses = np.array([np.nan, 2.0, np.nan, 4.0])
    average = smoothed(losses, window=2)
    assert np.isnan(average[0])
    # weights 1/2 and 1, corrected for what is missing before the start
    assert average[1:].tolist() == [2.0, 2.0, (0.5 * 2.0 + 4.0) / 1.5]
    assert smoothed(losses[1:2], window=1).tolist() == [2.0]
