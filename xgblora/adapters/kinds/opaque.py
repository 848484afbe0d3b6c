"""Layers with a forward of their own: quantised ones (bitsandbytes, torchao, GPTQ, AWQ), custom ones.

All that is known of them is that they map `in_features` numbers to `out_features` through a weight.
"""

from xgblora.adapters.kinds.kind import LayerKind, declared_features

# PEFT adapts the quantised layers that it knows as it does `nn.Linear`
OPAQUE = LayerKind("a module with in_features, out_features and a weight", declared_features, fan_in_fan_out=False)
