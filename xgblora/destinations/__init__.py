"""Where a result can be taken: what each destination takes, checked before anything is written."""

from xgblora.destinations.destination import Adapter, Destination
from xgblora.destinations.registry import DESTINATIONS

__all__ = ["DESTINATIONS", "Adapter", "Destination"]
