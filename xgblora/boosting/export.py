"""Taking the result away: the trained model as a plain Hugging Face folder."""

import logging
import os
from pathlib import Path

import torch
from safetensors import safe_open

from xgblora.adapters import Rank1Linear
from xgblora.atomic_file import replacing_folder
from xgblora.boosting import base_files
from xgblora.errors import InputError
from xgblora.spelling import dtype_name

logger = logging.getLogger("xgblora")


def export_merged(model, folder: str | os.PathLike, *, tokenizer=None) -> None:
    """Write a model without adapters (see `finish`, `xgblora.detach`) as a folder that `from_pretrained` loads.

    Only weights were trained, so only weights change: every other file of the base model (its folder's, or those in
    the hub's cache) is copied byte for byte, and its configuration names another dtype only where the weights have
    another. What is no longer the base's (a configuration or tokens that were changed) and what has no base on this
    machine is written as transformers writes it.

    The folder appears whole: it is written beside its place and renamed; one that is there already is replaced.

    Args:
        model: a transformers model.
        folder: where to.
        tokenizer: saved with it, if given, where it has other tokens than the base's or the base has none.

    Raises:
        InputError: the model still has adapters, under which `from_pretrained` would not find the weights, or what was
            saved is not the model.
    """
    adapted = [module for module in model.modules() if isinstance(module, Rank1Linear)]
    if not all(layer.mergeable for layer in adapted):
        raise InputError("the model's weights cannot take its boosters (quantised): export_peft(ledger, ...) instead")
    if adapted:
        raise InputError("the model has adapters: finish(...) or xgblora.detach(model) first")
    base = _base_of(model)
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        _check_saved(model, temporary)
        if base is not None:
            _take_from_base(base, model, temporary, Path(folder))
        if tokenizer is not None and (base is None or not base_files.same_tokens(base, tokenizer)):
            tokenizer.save_pretrained(temporary)


def _base_of(model) -> Path | None:
    """The folder that the model was loaded from; None if it was made otherwise or that is gone."""
    name = getattr(model.config, "_name_or_path", None)
    base = base_files.base_folder(name, getattr(model.config, "_commit_hash", None))
    if name and base is None:
        logger.warning("XGBLoRA: %s is not here any more: its configuration is written anew, not copied", name)
    return base


def _take_from_base(base: Path, model, folder: Path, result: Path) -> None:
    """Put the files of `base` into `folder`, in which transformers has saved `model`."""
    written = {name: folder / name for name in (base_files.CONFIG, base_files.GENERATION_CONFIG)}
    unchanged = base_files.describes(base, model)
    ours = {} if unchanged else {name: file.read_bytes() for name, file in written.items() if file.exists()}
    for file in written.values():
        file.unlink(missing_ok=True)
    base_files.copy_files(base, folder, result=result)
    for name, content in ours.items():
        written[name].write_bytes(content)
    if unchanged:
        base_files.set_dtype(folder, dtype_name(model.dtype))
    else:
        logger.warning("XGBLoRA: The configuration is not that of %s any more: it is written anew, not copied", base)


def _check_saved(model, folder: Path) -> None:
    """Raise InputError unless `folder` holds a configuration and the weights of `model`, bit for bit.

    Compared are tensors that have the same name in both: transformers saves some under others, and shared ones once.
    """
    held, compared = model.state_dict(), 0
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in held.keys() & file.keys():
                compared += 1
                if not torch.equal(_bytes(file.get_tensor(name)), _bytes(held[name])):
                    raise InputError(f"{name} was saved as something else than it is; nothing was written")
    if not compared or not (folder / "config.json").is_file():
        raise InputError(
            "what was saved is no model: its configuration or its weights are missing; nothing was written"
        )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    # not the values: one that is not a number is equal to nothing
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
