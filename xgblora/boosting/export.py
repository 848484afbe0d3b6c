"""Taking the result away: the trained model as a plain Hugging Face folder."""

import os
import shutil
import tempfile
from pathlib import Path

import torch

from xgblora.adapters import AdapterSet, Rank1Linear, detach
from xgblora.boosting.booster import Booster
from xgblora.errors import InputError


def finish(adapters: AdapterSet, booster: Booster | None, *, step: int, epoch: float) -> bool:
    """Fold the adapter that is left when training ends into the weights and take the adapters off the model.

    With a booster the adapter becomes the last one of its ledger.

    Returns:
        Whether there was anything left to fold.
    """
    left = any(bool(torch.any(layer.b != 0)) for layer in adapters.layers.values())
    if booster is None:
        detach(adapters.model, fold=True)
        return left
    if left:
        booster.merge(step=step, epoch=epoch)
    detach(adapters.model, fold=False)
    return left


def export_merged(model, folder: str | os.PathLike, *, tokenizer=None) -> None:
    """Write a model without adapters (see `finish`, `xgblora.detach`) as a folder that `from_pretrained` loads.

    The folder appears whole: it is written beside its place and renamed; one that is there already is replaced.

    Args:
        model: a transformers model.
        folder: where to.
        tokenizer: saved with it, if given.

    Raises:
        InputError: the model still has adapters, which `from_pretrained` would not find its weights under.
    """
    if any(isinstance(module, Rank1Linear) for module in model.modules()):
        raise InputError("the model has adapters: finish(...) or xgblora.detach(model) first")
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        os.chmod(temporary, 0o755)
        _put_in_place(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _put_in_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what stood there is removed only after that."""
    if not folder.exists():
        os.replace(new, folder)
        return
    old = new.with_name(f"{new.name}.old")
    os.replace(folder, old)
    try:
        os.replace(new, folder)
    except BaseException:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
