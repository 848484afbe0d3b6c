"""`LayerKind`: what a kind of layer says of itself, so that an adapter can stand beside it and be merged into it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xgblora.adapters.kinds.probe import writes_reach_the_output
from xgblora.ops.merge_rank1 import WEIGHT_DTYPES


def as_stored(weight: Tensor) -> Tensor:
    """The weight itself: of layers that store it as [out_features, in_features]."""
    return weight


def declared_features(module: nn.Module) -> tuple[int, int] | None:
    """(in_features, out_features) of a module that says both and has a weight; else None."""
    features = getattr(module, "in_features", None), getattr(module, "out_features", None)
    # GPTQ and AWQ layers have packed integers under `qweight` and no `weight`
    has_weight = hasattr(module, "weight") or hasattr(module, "qweight")
    return features if has_weight and all(isinstance(size, int) for size in features) else None


def never(module: nn.Module) -> bool:
    """No."""
    return False


@dataclass(frozen=True)
class LayerKind:
    """A kind of layer that can carry adapters.

    Attributes:
        name: what messages call such a layer.
        features: `module -> (in_features, out_features)`, None for a module that is not of this kind.
        weight_name: the attribute of the module that holds its weight.
        matrix: `weight -> [out_features, in_features]`, a view of it, so that writing the view writes the layer.
        multiplies: `module -> bool`, whether its own forward is `x matrix^T + bias` with the `bias` that it has; the
            fused operation then stands in for it.
        takes_writes: `module -> bool`, whether adding `outer(b, a)` to a weight of plain numbers adds `(x . a) b` to
            what the module gives; None to find it out by trying, as `writes_reach_the_output` does.
        fan_in_fan_out: the entry of that name in the configuration of a PEFT adapter; None where PEFT adapts no such
            layer.
        layer: what is put in the module's place, `(base, alpha=, rank=, seed=) -> layer`; None for `Rank1Linear`, of
            which it is a subclass otherwise. One whose weight is several matrices (the experts of a mixture) gives
            them as `matrices`, and holds `rank` rows of `a` and `b` for each, one matrix after the other.
    """

    name: str
    features: Callable[[nn.Module], tuple[int, int] | None]
    weight_name: str = "weight"
    matrix: Callable[[Tensor], Tensor] = as_stored
    multiplies: Callable[[nn.Module], bool] = never
    takes_writes: Callable[[nn.Module], bool] | None = None
    fan_in_fan_out: bool | None = None
    layer: Callable[..., nn.Module] | None = None

    def weight_of(self, module: nn.Module) -> Tensor:
        """`matrix` of the module's weight; of a quantised layer of whatever it calls its weight.

        Raises:
            AttributeError: the module has none.
        """
        return self.matrix(getattr(module, self.weight_name))

    def has_dense_weight(self, module: nn.Module) -> bool:
        """Whether the weight is a plain tensor of fp32, bf16 or fp16 numbers.

        Tensor subclasses other than `nn.Parameter` are none (bitsandbytes, torchao, DTensor), nor is a weight that some
        modules have as a method (`torch.ao.nn.quantized.dynamic.Linear`) or not at all.
        """
        weight = getattr(module, self.weight_name, None)
        plain = type(weight) in (nn.Parameter, Tensor)
        return plain and weight.dtype in WEIGHT_DTYPES and weight.layout is torch.strided

    def only_multiplies(self, module: nn.Module) -> bool:
        """Whether calling `module` is `x matrix^T + bias` with the weight it holds, and nothing else happens.

        False for a forward of its own, on the class or on the instance (a hook of accelerate's), for a weight that
        is computed anew for every forward (`torch.nn.utils.parametrize`), and where hooks wait.
        """
        return (
            self.multiplies(module)
            and "forward" not in vars(module)
            and self.weight_name in module._parameters
            and not (module._forward_hooks or module._forward_pre_hooks)
            and not (module._backward_hooks or module._backward_pre_hooks)
        )

    def takes_merges(self, module: nn.Module) -> bool:
        """Whether what is written into the weight is what the module computes with; of a dense weight only."""
        if self.only_multiplies(module):
            return True
        if not self.has_dense_weight(module):
            return False
        if self.takes_writes is not None:
            return self.takes_writes(module)
        return writes_reach_the_output(module, self.weight_of(module), *self.features(module))
