"""What a layer must be for an adapter to stand beside it, and whether a merge may write into its weight.

A base layer is any module that maps `in_features` numbers to `out_features` through a weight:

- `nn.Linear` and its subclasses, and quantised layers that keep its interface (bitsandbytes, torchao, GPTQ, AWQ);
- transformers' `Conv1D` (GPT-2), which stores its weight as [in_features, out_features].

Quantised weights have no numbers that a merge could add to. Other layers have them but do not multiply by them as they
are (masks, norms, ternary weights): there a merge would not be what the adapter was. So a layer with a forward of its
own is asked, not trusted: see `writes_reach_the_output`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from xgblora.ops.merge_rank1 import WEIGHT_DTYPES

# A merge that is off by more than this share of itself is not the adapter. bf16 keeps 1/256 of a result; a layer that
# scales, masks or quantises its weight is off by tens of percent.
_PROBE_TOLERANCE = 0.01


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is transformers' `Conv1D`: `x W + bias` with W stored as [in_features, out_features].

    Known by its class name, its `nf` (out_features) and a 2-D weight, so that transformers need not be imported.
    """
    if type(module).__name__ != "Conv1D" or not isinstance(getattr(module, "nf", None), int):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def features_of(module: nn.Module) -> tuple[int, int] | None:
    """(in_features, out_features) of a layer that can carry an adapter, None for every other module."""
    if is_conv1d(module):
        inputs, outputs = module.weight.shape
        return inputs, outputs
    features = getattr(module, "in_features", None), getattr(module, "out_features", None)
    # GPTQ and AWQ layers have packed integers under `qweight` and no `weight`
    has_weight = hasattr(module, "weight") or hasattr(module, "qweight")
    return features if has_weight and all(isinstance(size, int) for size in features) else None


def weight_of(base: nn.Module) -> Tensor:
    """The weight as [out_features, in_features]: of a `Conv1D` a transposed view, so that writing it writes the layer.

    Of a quantised layer it is whatever the layer calls its weight.

    Raises:
        AttributeError: the layer has none.
    """
    return base.weight.T if is_conv1d(base) else base.weight


def device_of(base: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a layer that has none."""
    for tensors in (base.parameters(), base.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def has_dense_weight(base: nn.Module) -> bool:
    """Whether the weight is a plain tensor of fp32, bf16 or fp16 numbers.

    Tensor subclasses other than `nn.Parameter` are none (bitsandbytes, torchao, DTensor), nor is a weight that some
    modules have as a method (`torch.ao.nn.quantized.dynamic.Linear`) or not at all.
    """
    weight = getattr(base, "weight", None)
    return type(weight) in (nn.Parameter, Tensor) and weight.dtype in WEIGHT_DTYPES and weight.layout is torch.strided


def runs_plain_linear(base: nn.Module) -> bool:
    """Whether calling `base` is `F.linear` with the weight it holds, and nothing else happens.

    False for a forward of its own, on the class or on the instance (accelerate's `device_map`), for a weight that is
    computed anew for every forward (`torch.nn.utils.parametrize`), and where hooks wait.
    """
    return (
        (type(base).forward is nn.Linear.forward or is_conv1d(base))
        and "forward" not in vars(base)
        and "weight" in base._parameters
        and not (base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks)
    )


@torch.no_grad()
def writes_reach_the_output(base: nn.Module) -> bool:
    """Whether adding `outer(b, a)` to the dense weight adds `(x . a) b` to the output, found by trying it on one row.

    The weight is put back bit for bit. A layer whose forward does not take a row [1, in_features] counts as one that
    cannot be merged into: its boosters are then kept beside it, which is right for every layer.
    """
    weight, (inputs, outputs) = base.weight, features_of(base)
    kept, training = weight.clone(), base.training
    a = torch.arange(inputs, dtype=torch.float32, device=weight.device).cos()
    x = a.to(weight.dtype).unsqueeze(0)
    projected = x.float() @ a
    # dropout would hide the difference
    base.eval()
    try:
        before = base(x).float()
        # four times what the layer gives already, so that the change is not lost in the rounding of the output
        size = 4.0 * before.abs().max().clamp_min(1e-3) / projected
        b = torch.arange(1, outputs + 1, dtype=torch.float32, device=weight.device).sin() * size
        weight_of(base).add_(torch.outer(b, a))
        change = base(x).float() - before
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, NotImplementedError):
        return False
    finally:
        weight.copy_(kept)
        base.train(training)
    expected = (projected * b).unsqueeze(0)
    if change.shape != expected.shape:
        return False
    return bool((change - expected).abs().max() <= _PROBE_TOLERANCE * expected.abs().max())


def stored_tensors(base: nn.Module) -> dict[str, Tensor]:
    """Every tensor that `base` consists of, by name, in the order of the names.

    Parameters and buffers, and what its `state_dict` has beside them: bitsandbytes keeps scales and tables there.
    Wrapper tensors (torchao) are given as the tensors that they hold.
    """
    found = {**base.state_dict(), **dict(base.named_parameters()), **dict(base.named_buffers())}
    parts = {name: part for key, value in found.items() for name, part in _parts(key, value)}
    return dict(sorted(parts.items()))


def _parts(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, (tuple, list)):
        for index, part in enumerate(value):
            yield from _parts(f"{name}.{index}", part)
    elif is_traceable_wrapper_subclass(value):
        for attribute in value.__tensor_flatten__()[0]:
            yield from _parts(f"{name}.{attribute}", getattr(value, attribute))
    elif isinstance(value, Tensor):
        yield name, value.detach()
