"""Whether a layer multiplies by its weight as it is, found by trying.

Quantised weights have no numbers that a merge could add to. Other layers have them but do not multiply by them as they
are (masks, norms, ternary weights): there a merge would not be what the adapter was. So a layer with a forward of its
own is asked, not trusted.
"""

import torch
from torch import Tensor, nn

# A merge that is off by more than this share of itself is not the adapter. bf16 keeps 1/256 of a result; a layer that
# scales, masks or quantises its weight is off by tens of percent.
_TOLERANCE = 0.01


@torch.no_grad()
def writes_reach_the_output(base: nn.Module, matrix: Tensor, in_features: int, out_features: int) -> bool:
    """Whether adding `outer(b, a)` to `matrix` adds `(x . a) b` to the output of `base`, found by trying it on one row.

    `matrix` is the dense weight as [out_features, in_features], a view into the layer; it is put back bit for bit. A
    layer whose forward does not take a row [1, in_features] counts as one that cannot be merged into: its boosters are
    then kept beside it, which is right for every layer.
    """
    kept, training = matrix.clone(), base.training
    a = torch.arange(in_features, dtype=torch.float32, device=matrix.device).cos()
    x = a.to(matrix.dtype).unsqueeze(0)
    projected = x.float() @ a
    # dropout would hide the difference
    base.eval()
    try:
        before = base(x).float()
        # four times what the layer gives already, so that the change is not lost in the rounding of the output
        size = 4.0 * before.abs().max().clamp_min(1e-3) / projected
        b = torch.arange(1, out_features + 1, dtype=torch.float32, device=matrix.device).sin() * size
        matrix.add_(torch.outer(b, a))
        change = base(x).float() - before
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, NotImplementedError):
        return False
    finally:
        matrix.copy_(kept)
        base.train(training)
    expected = (projected * b).unsqueeze(0)
    if change.shape != expected.shape:
        return False
    return bool((change - expected).abs().max() <= _TOLERANCE * expected.abs().max())
