"""Build of xgblora: Python, `kernels/` imported as `xgblora.kernels`, and the two extensions of csrc.

`xgblora._host` is built where there is a C++ compiler, `xgblora._C` where nvcc is found.
"""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))
from build import BuildError, commands, extensions
from build_extension import cuda_target, plan_build
from build_host import host_target, plan_host

try:
    targets = [cuda_target(plan_build(os.environ)), host_target(plan_host(os.environ))]
except BuildError as error:
    sys.exit(f"error: {error}")

setup(
    packages=[*find_packages(include=["xgblora", "xgblora.*"]), "xgblora.kernels"],
    package_dir={"xgblora": "xgblora", "xgblora.kernels": "kernels"},
    ext_modules=extensions(targets),
    cmdclass=commands(targets),
)
