"""The package as others meet it: its names, and what is packed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import xgblora

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "xgblora"


class TestNames:
    """The public names of the design."""

    @pytest.mark.parametrize(
        "name",
        [
            "attach",
            "detach",
            "AdapterSet",
            "Rank1Linear",
            "ZeroOrder",
            "Booster",
            "FullFineTuning",
            "Ledger",
            "MergePolicy",
            "Tape",
            "start_tape",
            "replay",
            "XGBLoRATrainer",
            "XGBLoRAArguments",
            "export_merged",
            "InputError",
            "ops",
        ],
    )
    def test_it_is_there_and_listed(self, name):
        assert getattr(xgblora, name) is not None
        assert name in xgblora.__all__
        assert name in dir(xgblora)

    def test_a_function_is_not_replaced_by_the_room_that_it_lives_in(self, python):
        """A package called like a public name would be put in its place by the import system."""
        printed = python(
            """
            import importlib, types, xgblora
            for home in set(xgblora._HOMES.values()):
                importlib.import_module(home)
            print([name for name in xgblora._HOMES if isinstance(getattr(xgblora, name), types.ModuleType)])
            """
        )
        assert printed == "[]\n"

    @pytest.mark.parametrize("name", ["rank1_linear", "row_dots", "perturb", "update_", "merge_rank1_", "merge_noise_"])
    def test_operations_are_there(self, name):
        assert callable(getattr(xgblora.ops, name))

    def test_a_name_that_is_not_there_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            xgblora.nothing  # noqa: B018

    def test_a_name_of_before_works_with_a_warning(self):
        with pytest.warns(DeprecationWarning, match=r"^xgblora\.Unboosted is now xgblora\.FullFineTuning$") as warned:
            assert xgblora.Unboosted is xgblora.FullFineTuning
        assert warned[0].filename == __file__
        assert "Unboosted" not in xgblora.__all__

    def test_the_version_is_that_of_the_distribution(self):
        from importlib.metadata import version

        assert xgblora.__version__ == version("xgblora")

    def test_bad_input_is_a_value_error(self):
        assert issubclass(xgblora.InputError, ValueError)


class TestDistribution:
    """What is packed."""

    @pytest.mark.parametrize(
        "command", ["xgblora-train", "xgblora-compare", "xgblora-env", "xgblora-export", "xgblora-replay"]
    )
    def test_commands_lead_to_functions(self, command):
        from importlib.metadata import entry_points

        (entry,) = entry_points(group="console_scripts", name=command)
        assert callable(entry.load())

    def test_every_file_of_csrc_is_in_the_source_distribution(self):
        assert "graft csrc" in (ROOT / "MANIFEST.in").read_text().splitlines()

    @pytest.mark.parametrize(
        ("built", "source"),
        [("kernels/tuning_table.json", "kernels/tuning_table.json"), ("py.typed", "xgblora/py.typed")],
    )
    def test_what_is_no_code_is_built_in(self, tmp_path, built, source):
        pytest.importorskip("setuptools", minversion="77", reason="needs the setuptools of the build")
        command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", tmp_path]
        environment = {**os.environ, "XGBLORA_BUILD_CUDA": "0", "XGBLORA_BUILD_HOST": "0"}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        assert (tmp_path / "xgblora" / built).read_bytes() == (ROOT / source).read_bytes()

    def test_the_build_needs_no_torch(self, python):
        pytest.importorskip("setuptools", reason="needs setuptools")
        program = """
            import sys

            class Blocker:
                def find_spec(self, name, path=None, target=None):
                    if name.partition(".")[0] in ("torch", "xgblora"):
                        raise ImportError(f"{name} is blocked")

            sys.meta_path.insert(0, Blocker())
            sys.argv = ["setup.py", "--quiet", "--name"]
            exec(compile(open("setup.py").read(), "setup.py", "exec"), {"__file__": "setup.py", "__name__": "__main__"})
        """
        assert python(program, XGBLORA_BUILD_CUDA="0") == "xgblora\n"

    @pytest.mark.parametrize(
        ("variables", "line"),
        [
            ({"XGBLORA_BUILD_CUDA": "maybe"}, "error: XGBLORA_BUILD_CUDA=maybe: must be auto, 1 or 0"),
            (
                {"XGBLORA_BUILD_CUDA": "1", "CUDA_HOME": "/no/such/folder"},
                "error: XGBLORA_BUILD_CUDA=1: nvcc not found in CUDA_HOME=/no/such/folder",
            ),
            (
                {"XGBLORA_CUDA_ARCHS": "all"},
                "error: XGBLORA_CUDA_ARCHS=all: must be numbers separated by ';', such as 80;90",
            ),
        ],
    )
    def test_a_build_that_cannot_be_ends_with_one_line(self, variables, line):
        pytest.importorskip("setuptools", reason="needs setuptools")
        command = [sys.executable, "setup.py", "--quiet", "--name"]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
        assert (done.returncode, done.stderr.splitlines()) == (1, [line])

    def test_every_room_is_a_package(self):
        folders = {path.parent for path in PACKAGE.rglob("*.py")}
        assert all((folder / "__init__.py").exists() for folder in folders)
