"""Adapters on a model: the arena that stores them, the layer that applies them, attaching and detaching."""

from xgblora.adapters.adapter_set import AdapterSet
from xgblora.adapters.arena import Arena, Slot
from xgblora.adapters.attach import attach, detach
from xgblora.adapters.origin import Origin
from xgblora.adapters.rank1_linear import Rank1Linear

__all__ = ["AdapterSet", "Arena", "Origin", "Rank1Linear", "Slot", "attach", "detach"]
