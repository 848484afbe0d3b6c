"""Taking the result away: the trained model as a plain Hugging Face folder."""

import os

from xgblora.adapters import Rank1Linear, Trainable, detach
from xgblora.adapters.identity import trained_hash
from xgblora.atomic_file import replacing_folder
from xgblora.boosting.booster import Booster
from xgblora.boosting.unboosted import Unboosted
from xgblora.errors import InputError


def finish(
    adapters: Trainable, booster: Booster | Unboosted, *, step: int, epoch: float, held_out_loss: float | None = None
) -> bool:
    """Make the adapter that is left when training ends the last booster, end the tape, and take the adapters off.

    It is merged at its full scale, whatever the shrinkage: the model stays the one that was evaluated.
    Layers whose weights cannot be written (quantised) keep their boosters beside them; then the adapters, empty now,
    stay on the model.

    Returns:
        Whether there was anything left to merge.
    """
    left = booster.is_trained()
    if left:
        booster.merge(step=step, epoch=epoch, held_out_loss=held_out_loss, last=True)
    booster.end()
    if booster.tape is not None:
        booster.tape.record_end(trained_hash(adapters))
    if takes_its_boosters(adapters):
        detach(adapters.model, fold=False)
    return left


def takes_its_boosters(adapters: Trainable) -> bool:
    """Whether every adapted weight can be merged into, so that the model alone holds the result."""
    return all(layer.mergeable for layer in adapters.layers.values())


def export_merged(model, folder: str | os.PathLike, *, tokenizer=None) -> None:
    """Write a model without adapters (see `finish`, `xgblora.detach`) as a folder that `from_pretrained` loads.

    The folder appears whole: it is written beside its place and renamed; one that is there already is replaced.

    Args:
        model: a transformers model.
        folder: where to.
        tokenizer: saved with it, if given.

    Raises:
        InputError: the model still has adapters, under which `from_pretrained` would not find the weights.
    """
    adapted = [module for module in model.modules() if isinstance(module, Rank1Linear)]
    if not all(layer.mergeable for layer in adapted):
        raise InputError("the model's weights cannot take its boosters (quantised): export_peft(ledger, ...) instead")
    if adapted:
        raise InputError("the model has adapters: finish(...) or xgblora.detach(model) first")
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
