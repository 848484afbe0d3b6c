"""Mixtures of experts whose parameters are layers: what stands in their place while they carry adapters.

transformers 5 gives all of its mixtures one interface (`use_experts_implementation`): two parameters of three
dimensions, a flag each for how they are stored, for biases and for a gate, and the function of the gate itself. That is
all that is used here; no architecture is known by its name.
"""

import inspect

import torch
from torch import Tensor, nn

from xgblora.adapters.kinds.experts import ExpertMatrices, Routed
from xgblora.adapters.rank1_linear import Rank1Linear
from xgblora.ops.merge_rank1 import WEIGHT_DTYPES


class OpenMixture(nn.Module):
    """Runs the mixture `closed` by way of two layers, the first called as its parameter is, and `down_proj`.

    Attributes:
        closed: the module that stood here; its parameters are those of the layers. Not a submodule.
    """

    def __init__(self, closed: nn.Module):
        super().__init__()
        # beside the submodules: its parameters must not be found twice
        self.__dict__["closed"] = closed
        self._first = first_parameter(closed)
        for name in (self._first, "down_proj"):
            bias = getattr(closed, f"{name}_bias") if closed.has_bias else None
            setattr(self, name, ExpertMatrices(getattr(closed, name), bias, closed.is_transposed))
        for name, child in closed.named_children():
            setattr(self, name, child)

    def forward(self, *args, **kwargs) -> Tensor:
        """Hidden states [M, H] with their experts and weights, both [M, k], to [M, H]."""
        bound = inspect.signature(self.closed.forward).bind(*args, **kwargs).arguments
        hidden, chosen, weights = list(bound.values())[:3]
        experts, order = chosen.reshape(-1).sort(stable=True)
        numbers = torch.arange(self.closed.num_experts, device=experts.device)
        ends = torch.searchsorted(experts, numbers, right=True).to(torch.int32)
        routed = Routed(experts, ends, order // chosen.shape[-1], len(hidden))
        inner = getattr(self, self._first)(hidden[routed.tokens], routed)
        inner = self.closed._apply_gate(inner) if self.closed.has_gate else self.closed.act_fn(inner)
        outer = self.down_proj(inner, routed)
        if self.closed.has_post_expert_norm:
            outer = self.closed.post_expert_norm(outer)
        outer = outer * weights.reshape(-1)[order].unsqueeze(-1)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return outer[back].unflatten(0, chosen.shape).sum(dim=1).to(hidden.dtype)


def open_mixtures(model: nn.Module) -> None:
    """Put an `OpenMixture` in the place of every mixture, in place."""
    for name, module in list(model.named_modules()):
        if name and is_mixture(module):
            replace_module(model, name, OpenMixture(module))


def close_mixtures(model: nn.Module) -> None:
    """Give the mixtures without adapters their own modules back, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, OpenMixture) and not any(isinstance(child, Rank1Linear) for child in module.children()):
            replace_module(model, name, module.closed)


def is_mixture(module: nn.Module) -> bool:
    """Whether a module is a mixture of the interface, on one device and with plain numbers as weights."""
    flags = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "num_experts", "_apply_gate")
    if isinstance(module, OpenMixture) or not all(hasattr(module, flag) for flag in flags):
        return False
    weights = [module._parameters.get(name) for name in (first_parameter(module), "down_proj")]
    return not getattr(module, "_is_expert_parallel", False) and all(map(_is_plain, weights))


def first_parameter(mixture: nn.Module) -> str:
    """The name of the parameter that hidden states are multiplied by."""
    return "gate_up_proj" if mixture.has_gate else "up_proj"


def _is_plain(weight: Tensor | None) -> bool:
    return type(weight) is nn.Parameter and weight.ndim == 3 and weight.dtype in WEIGHT_DTYPES


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place that is called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
