"""Build of xgblora: pure Python; `kernels/` on disk is imported as `xgblora.kernels`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["xgblora", "xgblora.*"]), "xgblora.kernels"],
    package_dir={"xgblora": "xgblora", "xgblora.kernels": "kernels"},
)
