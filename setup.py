"""Build of xgblora: Python, `kernels/` imported as `xgblora.kernels`, and `xgblora._C` where nvcc is found."""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))
from build_extension import BuildError, commands, extensions, plan_build

try:
    plan = plan_build(os.environ)
except BuildError as error:
    sys.exit(f"error: {error}")

setup(
    packages=[*find_packages(include=["xgblora", "xgblora.*"]), "xgblora.kernels"],
    package_dir={"xgblora": "xgblora", "xgblora.kernels": "kernels"},
    ext_modules=extensions(plan),
    cmdclass=commands(plan),
)
