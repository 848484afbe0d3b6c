"""Taking the result away: the trained model as a plain Hugging Face folder."""

import os
from pathlib import Path

import torch
from safetensors import safe_open

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
        InputError: the model still has adapters, under which `from_pretrained` would not find the weights, or what was
            saved is not the model.
    """
    adapted = [module for module in model.modules() if isinstance(module, Rank1Linear)]
    if not all(layer.mergeable for layer in adapted):
        raise InputError("the model's weights cannot take its boosters (quantised): export_peft(ledger, ...) instead")
    if adapted:
        raise InputError("the model has adapters: finish(...) or xgblora.detach(model) first")
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        _check_saved(model, temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)


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
