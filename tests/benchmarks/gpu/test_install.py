"""Finding the package on a machine where pip cannot install it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import install

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="PYTHONSAFEPATH came with Python 3.11")
def test_links_make_the_package_and_its_kernels_importable(tmp_path):
    environment = dict(os.environ)
    install.use_links(ROOT, tmp_path, environment)
    # -S: without what is installed, this checkout's editable finder too; triton and torch are not asked for
    program = (
        "import xgblora, importlib.util as u; print(xgblora.__file__); print(u.find_spec('xgblora.kernels').origin)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    package, kernels = done.stdout.split()
    assert Path(package).resolve() == ROOT / "xgblora" / "__init__.py"
    assert Path(kernels).resolve() == ROOT / "kernels" / "__init__.py"


def test_what_is_installed_and_cannot_be_built_better_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "probe", lambda *_: "not built: nvcc not found")
    monkeypatch.setattr(install, "has_nvcc", lambda _: False)
    monkeypatch.setattr(install, "run", lambda *_: pytest.fail("nothing is to be installed"))
    found = install.installed(ROOT, tmp_path, "90", {})
    assert found["state"] == "found installed; extension: not built: nvcc not found"


def test_an_extension_that_is_older_than_its_sources_is_built_anew(tmp_path):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "xgblora").mkdir()
    source, built = tmp_path / "csrc" / "merge.cu", tmp_path / "xgblora" / "_C.cpython-312.so"
    source.touch()
    assert not install.is_stale(tmp_path), "nothing was built"
    built.touch()
    os.utime(source, (1, 1))
    assert not install.is_stale(tmp_path)
    os.utime(built, (0, 0))
    assert install.is_stale(tmp_path)


def test_a_pip_that_fails_is_told_with_its_output_and_links_are_tried(tmp_path, monkeypatch):
    states = iter(["", "", "not built: xgblora was not installed with pip"])
    asked = []
    monkeypatch.setattr(install, "probe", lambda *_: next(states))
    monkeypatch.setattr(install, "run", lambda command, folder, given: asked.append(given) or (1, "no setuptools"))
    environment = {"PATH": "p"}
    found = install.installed(ROOT, tmp_path, "90", environment)
    assert found["state"].startswith("pip failed, found through links")
    assert found["output"]["first"] == ["no setuptools"]
    assert asked[0]["XGBLORA_CUDA_ARCHS"] == "90"
    assert str(tmp_path / "linked") in environment["PYTHONPATH"]
