"""Taking the result away: the trained model as a plain Hugging Face folder."""

import os

from xgblora.adapters import Rank1Linear
from xgblora.atomic_file import replacing_folder
from xgblora.errors import InputError


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
