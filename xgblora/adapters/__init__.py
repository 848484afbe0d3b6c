"""Adapters on a model: the arena that stores them, the layer that applies them, attaching and detaching.

And, where no adapters are wanted, the model's own parameters in their place (`FullParameters`).
"""

from xgblora.adapters.adapter_set import AdapterSet
from xgblora.adapters.arena import Arena, Slot
from xgblora.adapters.attach import attach, detach
from xgblora.adapters.depth import Depths
from xgblora.adapters.full_parameters import FullParameters
from xgblora.adapters.kinds.conv1d import CONV1D
from xgblora.adapters.kinds.experts import EXPERTS
from xgblora.adapters.kinds.kind import LayerKind
from xgblora.adapters.kinds.linear import LINEAR
from xgblora.adapters.kinds.opaque import OPAQUE
from xgblora.adapters.kinds.registry import register_kind
from xgblora.adapters.origin import Origin
from xgblora.adapters.rank1_linear import Rank1Linear
from xgblora.adapters.trainable import Trainable

__all__ = [
    "AdapterSet",
    "Arena",
    "Depths",
    "FullParameters",
    "LayerKind",
    "Origin",
    "Rank1Linear",
    "Slot",
    "Trainable",
    "attach",
    "detach",
    "register_kind",
]

# the last one is asked first: what no other kind knows is opaque
for _kind in (OPAQUE, LINEAR, CONV1D, EXPERTS):
    register_kind(_kind)
