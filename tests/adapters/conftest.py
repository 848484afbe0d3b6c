"""Linear layers that are no `nn.Linear`: quantised ones, and ones that do something else with their weight."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Int8Linear(nn.Module):
    """Weight-only int8: `weight` int8 [N, K] and a scale an output."""

    def __init__(self, in_features, out_features, dtype=torch.float32):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        weight = torch.randn(out_features, in_features) * in_features**-0.5
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.to(dtype))
        self.bias = nn.Parameter(torch.randn(out_features, dtype=dtype))

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias.to(x.dtype))


class PackedLinear(nn.Module):
    """Two 4-bit weights in a byte, under `qweight`, as GPTQ names them; there is no `weight` and no bias."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("qweight", torch.randint(0, 256, (in_features // 2, out_features), dtype=torch.uint8))

    def forward(self, x):
        weight = torch.cat((self.qweight & 15, self.qweight >> 4)).to(x.dtype) - 8
        return x @ weight * 0.05


class OwnForward(nn.Linear):
    """Computes what `nn.Linear` does in words of its own (Falcon's linear layer)."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


class Doubled(nn.Linear):
    """Twice what `nn.Linear` gives: what is added to its weight counts twice."""

    def forward(self, x):
        return 2 * super().forward(x)


class RowNormalised(nn.Linear):
    """Uses directions of the weight's rows only (Baichuan's output layer)."""

    def forward(self, x):
        return F.linear(x, F.normalize(self.weight), self.bias)


class Ternary(nn.Linear):
    """Uses signs of the weight only (BitNet)."""

    def forward(self, x):
        return F.linear(x, self.weight.sign() * self.weight.abs().mean(), self.bias)


class Dropping(nn.Linear):
    """Drops outputs at random while it trains; otherwise `nn.Linear`."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


class Picky(nn.Linear):
    """Takes three dimensions and no others."""

    def forward(self, x):
        batch, length, _ = x.shape
        return super().forward(x).view(batch, length, -1)


LAYERS = {
    layer.__name__: layer
    for layer in (Int8Linear, PackedLinear, OwnForward, Doubled, RowNormalised, Ternary, Dropping, Picky)
}


@pytest.fixture
def make_base():
    """A function `(kind, in_features, out_features)` that makes a base layer: one of these, "Linear" or "Conv1D"."""

    def make(kind: str, in_features: int = 6, out_features: int = 4) -> nn.Module:
        torch.manual_seed(0)
        if kind == "Linear":
            return nn.Linear(in_features, out_features)
        if kind == "Conv1D":
            from transformers.pytorch_utils import Conv1D

            layer = Conv1D(out_features, in_features)
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            return layer
        return LAYERS[kind](in_features, out_features)

    return make
