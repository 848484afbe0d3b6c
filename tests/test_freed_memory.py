"""Freed memory that stays with the process: counted in page faults, not in time."""

import ctypes
import os
import subprocess
import sys

import pytest

from xgblora import freed_memory
from xgblora.freed_memory import keep_freed_memory

# The page faults of 64 blocks of 1 MiB, freed before and taken again: 16,384 if the system was given them back.
COUNT = """
import ctypes
import resource
from xgblora.freed_memory import keep_freed_memory
kept = {keep} and keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
def take():
    blocks = [c.malloc(1 << 20) for _ in range(64)]
    for block in blocks:
        ctypes.memset(block, 1, 1 << 20)
    for block in blocks:
        c.free(ctypes.c_void_p(block))
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
take()
take()
before = faults()
take()
print(kept, faults() - before)
"""


@pytest.fixture
def glibc(monkeypatch):
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("the C library is not glibc")
    for name in freed_memory.SETTINGS_OF_THE_USER:
        monkeypatch.delenv(name, raising=False)


def count(keep: bool, **variables: str) -> tuple[str, int]:
    command = [sys.executable, "-c", COUNT.format(keep=keep)]
    run = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    kept, faults = run.stdout.split()
    return kept, int(faults)


def test_blocks_taken_again_cost_no_page_faults(glibc):
    _, as_it_is = count(keep=False)
    kept, faults = count(keep=True)
    assert kept == "True"
    assert as_it_is > 8_000
    assert faults < 800


@pytest.mark.parametrize("name", freed_memory.SETTINGS_OF_THE_USER)
def test_a_setting_of_the_user_stays(glibc, name):
    value = "glibc.malloc.trim_threshold=131072" if name == "GLIBC_TUNABLES" else "131072"
    kept, faults = count(keep=True, **{name: value})
    assert kept == "False"
    assert faults > 8_000


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert not keep_freed_memory()
