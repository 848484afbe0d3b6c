"""Memory that a forward frees stays with the process, for the next one to take.

glibc gives large blocks back to the system once they are freed, and the system zeroes every page anew when the next
forward touches it: 3,000 page faults a zeroth-order step with opt-mini, 14,000 with OPT-125m's shape, 6 to 7% of the
time of either. The next forward wants the same memory, so nobody gains by it.

It is a setting of the whole process: the commands make it, importing xgblora does not.
"""

import ctypes
import os
import sys

# numbers of mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The most that mallopt documents. A larger block, such as most weights, has pages of its own that go back at once.
OWN_PAGES_FROM = 32 << 20
# What may lie free at the end of the heap; a step on OPT-125m's shape with 16 examples of SST-2 needs 60 MB.
KEPT = 512 << 20
SETTINGS_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let the C library keep up to `KEPT` bytes that were freed, in blocks smaller than `OWN_PAGES_FROM`.

    Returns:
        Whether it does: not where it is not glibc, nor where one of `SETTINGS_OF_THE_USER` is in the environment,
        since then somebody has chosen otherwise.
    """
    if sys.platform != "linux" or any(name in os.environ for name in SETTINGS_OF_THE_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, OWN_PAGES_FROM) and mallopt(_M_TRIM_THRESHOLD, KEPT))
