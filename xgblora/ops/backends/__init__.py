"""Backends: each is one file that says which operations it runs, for which tensors, and why it cannot run here.

Another package adds one by an entry point of the group `xgblora.backends` that leads to a `Backend`:

    [project.entry-points."xgblora.backends"]
    abacus = "abacus.backend:BACKEND"
"""

from xgblora.ops.backends.backend import Backend

__all__ = ["Backend"]
