"""A classification head on a base that was saved without one: drawn from the seed of the run, the same each time.

Each matrix is uniform within +-1/sqrt(its inputs), as `nn.Linear` starts, and each bias zero. The labels are
recorded with the seed (`Origin`), so that base + ledger begins with the same head.
"""

import logging
import zlib
from collections.abc import Collection

import torch
from torch import Tensor, nn

from xgblora.adapters.rank1_linear import Rank1Linear, starting_a
from xgblora.ops.noise import derive_seed, uniform
from xgblora.scoring.forms import CLASSIFIER, form_of
from xgblora.scoring.forms.classifier import is_of_head

logger = logging.getLogger("xgblora")


@torch.no_grad()
def draw_head(model: nn.Module, seed: int, lacking: Collection[str]) -> set[str]:
    """Draw those parameters of the head of `model` that its checkpoint lacks, in place; their names.

    Args:
        model: a sequence classifier.
        seed: of the run.
        lacking: names of all parameters that the checkpoint lacks, or has for other labels.
    """
    drawn = {name for name in lacking if is_of_head(model, name)}
    for name, parameter in model.named_parameters():
        if name in drawn:
            if parameter.ndim < 2:
                parameter.zero_()
                continue
            noise = uniform(derive_seed(seed, zlib.crc32(name.encode())), parameter.numel(), device=parameter.device)
            parameter.copy_(starting_a(noise.view_as(parameter)))
    if drawn:
        logger.info("The head is drawn from seed %d: %s", seed, ", ".join(sorted(drawn)))
    return drawn


@torch.no_grad()
def whole_head(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the head of `model` with its adapters in them, by the names that they have without; or none."""
    if form_of(model) is not CLASSIFIER:
        return {}
    parts: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Rank1Linear) and is_of_head(model, name):
            parts[f"{name}.weight"] = module.weight.float() + module.scale * (module.b.T @ module.a)
            if module.bias is not None:
                parts[f"{name}.bias"] = module.bias
    return parts
