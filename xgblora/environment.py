"""The versions that a run depends on."""

import platform
from importlib.metadata import PackageNotFoundError, version

import xgblora

PACKAGES = ("torch", "triton", "transformers", "datasets", "accelerate", "safetensors", "numpy", "peft")


def versions() -> dict[str, str | None]:
    """Version of xgblora, Python, the platform and each package; None where one is not installed."""
    found = {"xgblora": xgblora.__version__, "python": platform.python_version(), "platform": platform.platform()}
    return {**found, **{package: _installed(package) for package in PACKAGES}}


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
