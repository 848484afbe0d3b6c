"""The blocks of a model: its layers of attention and feed-forward part, as transformers lists them."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks by name, in the order of the list; empty where the model has no such list."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and module and isinstance(module[-1], GradientCheckpointingLayer):
            if len(module) != getattr(model.config, "num_hidden_layers", None):
                return {}
            return {f"{name}.{number}": block for number, block in enumerate(module)}
    return {}
