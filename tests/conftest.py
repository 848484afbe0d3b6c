"""What every test has: the fixtures, a file for each kind of thing that they make, and some room for its processes."""

import gc
import os
import signal

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # before torch is imported, and for the processes that tests start: torch's threads spin while they wait, and beside
    # other busy processes the demonstration ran 20 times slower with two threads on two cores than with one
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # as a shell starts what runs in the background; the processes of tests would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

_FIXTURES = ("groups", "mixtures", "models", "processes", "runs", "shared", "texts", "together", "toys")
pytest_plugins = [f"tests.fixtures.{name}" for name in _FIXTURES]


def pytest_collection_finish() -> None:
    """Leave what the imports made out of later garbage collections: each training ends with a whole one."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Leave nothing frozen: libraries complain of what they find uncollected at the end."""
    gc.unfreeze()
