"""The end of training: the adapter that is left becomes the last booster, and the adapters come off."""

from xgblora.adapters import Trainable, detach
from xgblora.adapters.identity import trained_hash
from xgblora.boosting.booster import Booster
from xgblora.boosting.full_fine_tuning import FullFineTuning


def finish(
    adapters: Trainable,
    booster: Booster | FullFineTuning,
    *,
    step: int,
    epoch: float,
    held_out_loss: float | None = None,
) -> bool:
    """Make the adapter that is left when training ends the last booster, end the tape, and take the adapters off.

    It is merged at its full scale, whatever the shrinkage: the model stays the one that was evaluated.
    Layers whose weights cannot be written (quantised) keep their boosters beside them; then the adapters, empty now,
    stay on the model.

    Returns:
        Whether there was anything left to merge.

    Raises:
        MergeOverflow: a weight cannot take the adapter; nothing was changed.
    """
    left = booster.is_trained()
    if left:
        booster.merge(step=step, epoch=epoch, held_out_loss=held_out_loss, begins=False)
    booster.end()
    if booster.tape is not None:
        booster.tape.record_end(trained_hash(adapters))
    if takes_its_boosters(adapters):
        detach(adapters.model, fold=False)
    return left


def takes_its_boosters(adapters: Trainable) -> bool:
    """Whether every adapted weight can be merged into, so that the model alone holds the result."""
    return all(layer.mergeable for layer in adapters.layers.values())
