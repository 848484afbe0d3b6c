"""The wheel, built and installed into an environment of its own where there is no compiler: the demonstration runs."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WITHOUT_COMPILERS = {"XGBLORA_BUILD_CUDA": "0", "XGBLORA_BUILD_HOST": "0"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("setuptools", minversion="77", reason="needs the setuptools of the build")
    folder = tmp_path_factory.mktemp("wheel")
    steps = [
        ("egg_info", "--egg-base", folder),
        ("build", "--build-base", folder / "build"),
        ("bdist_wheel", "--bdist-dir", folder / "bdist", "--dist-dir", folder / "dist"),
    ]
    command = [sys.executable, "setup.py", "--quiet", *(word for step in steps for word in step)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **WITHOUT_COMPILERS}, check=True)
    (made,) = (folder / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """The programs of an environment with the wheel in it, and of what else is installed here all but xgblora."""
    pytest.importorskip("pip", reason="needs pip")
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # by its path alone, so that what a checkout put there to be imported itself is not followed
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(others) + "\n")
    programs = folder / "bin"
    command = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-deps", "--no-index"]
    done = subprocess.run([*command, "--ignore-installed", wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return programs


def test_it_has_what_is_no_code(wheel):
    import zipfile

    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"xgblora/py.typed", "xgblora/kernels/tuning_table.json", "xgblora/demo/opt-demo/model.safetensors"} <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "docs/")) for name in names)


def test_the_demonstration_runs_where_there_is_no_compiler(environment, tmp_path):
    sizes = ("--num_train=16", "--num_dev=4", "--num_eval=4", "--max_steps=2", "--logging_steps=1", "--eval_steps=2")
    command = [environment / "xgblora-train", *sizes, "--output_dir=run", "--save_model=false", "--use_cpu"]
    bare = {"PATH": str(environment), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["training"]["steps"] == 2
    where = "import xgblora; print(xgblora.__file__)"
    program = [environment / "python", "-c", where]
    printed = subprocess.run(program, cwd=tmp_path, env=bare, capture_output=True, text=True, check=True).stdout
    assert Path(printed.strip()).is_relative_to(environment.parent)
