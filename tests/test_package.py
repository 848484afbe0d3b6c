"""The package as others meet it: its names, what it needs, which room knows which, and the name `kernels`."""

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import xgblora

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "xgblora"

# A room may import the rooms of lower rank, and those of its own rank as long as no cycle comes of it.
RANKS = {
    "errors": 0,
    "spelling": 0,
    "atomic_file": 0,
    "figure_file": 0,
    "environment": 0,
    "freed_memory": 0,
    "demo": 0,
    "kernels": 1,
    "_C": 1,
    "ops": 2,
    "adapters": 3,
    "tape": 4,
    "zo": 5,
    "boosting": 5,
    "replaying": 6,
    "tasks": 1,
    "scoring": 2,
    "evaluation": 3,
    "objectives": 4,
    "records": 7,
    "training": 8,
    "runs": 9,
    "comparison": 10,
    "cli": 11,
}
# Below the trainer stand two towers, one of weights and one of texts, and neither knows the other.
OF_WEIGHTS = {"kernels", "_C", "ops", "adapters", "tape", "zo", "boosting", "replaying"}
OF_TEXTS = {"tasks", "scoring", "evaluation", "objectives"}


def python(program: str, *, path: tuple[Path, ...] = (), folder: Path = ROOT, **environment: str) -> str:
    """What `program` prints in a process of its own with `path` as PYTHONPATH."""
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **environment},
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


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

    def test_a_function_is_not_replaced_by_the_room_that_it_lives_in(self):
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

    @pytest.mark.parametrize("name", ["rank1_linear", "row_dots", "perturb", "update_", "merge_rank1_"])
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


class TestImports:
    """What an import brings with it, and what it does without."""

    def test_importing_operations_adapters_and_zeroth_order_imports_no_heavy_package(self):
        program = """
            import sys, xgblora, xgblora.ops, xgblora.adapters, xgblora.tape, xgblora.zo
            print([name for name in ("transformers", "datasets", "accelerate", "matplotlib") if name in sys.modules])
        """
        assert python(program) == "[]\n"

    def test_operations_adapters_and_zeroth_order_work_without_triton_and_datasets(self):
        printed = python(
            """
            import sys

            class Blocker:
                def find_spec(self, name, path=None, target=None):
                    if name.partition(".")[0] in ("triton", "datasets", "transformers", "matplotlib", "yaml"):
                        raise ImportError(f"{name} is blocked")

            sys.meta_path.insert(0, Blocker())
            import torch
            import xgblora
            import xgblora.ops

            model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            adapters = xgblora.attach(model, ["0", "2"], alpha=16.0, seed=0)
            x, y = torch.randn(16, 8), torch.randint(0, 2, (16,))
            cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
            loss = lambda model, batch: cross_entropy(model(batch["x"]), batch["y"])
            zo = xgblora.ZeroOrder(adapters, loss, eps=1e-3, lr=1e-3, directions=2, seed=0)
            losses = [zo.step({"x": x, "y": y}).loss.item() for _ in range(3)]
            booster = xgblora.Booster(adapters)
            before = model(x)
            booster.merge()
            assert torch.allclose(before, model(x), atol=1e-5)
            assert all(0 < value < 10 for value in losses)
            assert "triton" not in sys.modules and "transformers" not in sys.modules
            print("works")
            """
        )
        assert printed == "works\n"

    def test_training_imports_without_datasets(self):
        printed = python(
            """
            import importlib.abc, sys

            class Blocker(importlib.abc.MetaPathFinder):
                def find_spec(self, name, path=None, target=None):
                    if name.partition(".")[0] in ("triton", "datasets"):
                        raise ModuleNotFoundError(f"{name} is blocked", name=name)

            sys.meta_path.insert(0, Blocker())
            import importlib.util
            found = importlib.util.find_spec
            importlib.util.find_spec = lambda name, *rest: None if name == "datasets" else found(name, *rest)
            from xgblora import XGBLoRATrainer, XGBLoRAArguments
            from xgblora.cli.train import parse
            print(parse(["--model_name=m", "--use_cpu"])[1].method)
            """
        )
        assert printed == "xgblora\n"

    def test_tasks_import_neither_torch_nor_transformers(self):
        modules = [f"xgblora.tasks.{path.stem}" for path in (PACKAGE / "tasks").glob("[!_]*.py")]
        assert len(modules) > 10
        program = f"""
            import importlib, sys
            for module in {modules}:
                importlib.import_module(module)
            print([name for name in ("torch", "transformers") if name in sys.modules])
        """
        assert python(program) == "[]\n"

    def test_what_a_run_left_is_read_without_a_trainer(self):
        program = """
            import sys, xgblora.cli.export, xgblora.cli.replay
            print([name for name in ("transformers.trainer", "xgblora.training") if name in sys.modules])
        """
        assert python(program) == "[]\n"


def modules_of(path: Path) -> set[str]:
    """All that a file imports, wherever in it, by full names: the modules, and the names out of them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides which room it reaches"
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def imports_of(path: Path) -> set[str]:
    """The rooms and modules of xgblora that a file imports, wherever in it."""
    return {name.split(".")[1] for name in modules_of(path) if name.startswith("xgblora.")} - {"__version__"}


def modules_imported_by(path: Path) -> set[str]:
    """The modules of xgblora that a file imports, wherever in it; a room's own name for what stands in its __init__."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found & MODULES.keys()


def reached(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Where each node leads to over one edge or several."""
    reaches = dict(edges)
    for _ in edges:
        reaches = {node: others.union(*(reaches[other] for other in others)) for node, others in reaches.items()}
    return reaches


def packages_of(path: Path) -> set[str]:
    """The packages that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return {name.partition(".")[0] for name in names}


def kernels_of(path: Path) -> set[str]:
    """The modules of `xgblora.kernels` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "xgblora.kernels":
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("xgblora.kernels."):
            found.add(node.module.removeprefix("xgblora.kernels."))
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]
MODULES = {
    ".".join(("xgblora", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in SOURCES
}


class TestRooms:
    """Imports between rooms point one way."""

    @pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
    def test_a_file_imports_no_higher_room(self, path):
        room = room_of(path)
        higher = [other for other in imports_of(path) if other != room and RANKS[other] > RANKS[room]]
        assert higher == []

    def test_rooms_of_the_same_rank_make_no_cycle(self):
        reaches = {room: set() for room in RANKS}
        for path in SOURCES:
            reaches[room_of(path)] |= imports_of(path) - {room_of(path)}
        assert [room for room, others in reached(reaches).items() if room in others] == []

    def test_modules_make_no_circle_inside_a_room_either(self):
        reaches = reached({name: modules_imported_by(path) for name, path in MODULES.items()})
        assert {name for name, others in reaches.items() if name in others} == set()

    @pytest.mark.parametrize(("tower", "other"), [(OF_WEIGHTS, OF_TEXTS), (OF_TEXTS, OF_WEIGHTS)])
    def test_below_the_trainer_weights_and_texts_do_not_know_each_other(self, tower, other):
        known = {(room_of(path), room) for path in SOURCES if room_of(path) in tower for room in imports_of(path)}
        assert [pair for pair in known if pair[1] in other] == []

    def test_the_step_and_the_rounds_know_nothing_of_one_another_and_the_tape_of_neither(self):
        """What needs both, such as replaying a tape, is above them."""
        apart = {"zo": {"boosting", "replaying"}, "boosting": {"zo", "replaying"}, "tape": {"zo", "boosting"}}
        for path in SOURCES:
            assert not imports_of(path) & apart.get(room_of(path), set()), path

    def test_operations_know_no_model_and_no_trainer(self):
        for path in SOURCES:
            if room_of(path) in ("ops", "adapters", "tape", "zo"):
                tree = ast.parse(path.read_text(encoding="utf-8"))
                modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
                modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
                assert not any(module.startswith("transformers") for module in modules), path

    def test_kernels_know_nothing_of_the_package_but_themselves_its_error_and_its_spelling(self):
        for path in (ROOT / "kernels").glob("*.py"):
            assert imports_of(path) <= {"kernels", "errors", "spelling"}, path

    def test_operations_import_those_of_the_kernels_that_need_no_triton(self):
        free = {path.stem for path in (ROOT / "kernels").glob("*.py") if "triton" not in packages_of(path)}
        wanted = set().union(*(kernels_of(path) for path in SOURCES if room_of(path) == "ops"))
        assert wanted
        assert wanted <= free
        # and what they import in turn
        assert set().union(*(kernels_of(ROOT / "kernels" / f"{name}.py") for name in wanted)) <= free

    def test_the_numbers_of_the_noise_need_no_package(self):
        program = "import sys, xgblora.kernels.noise_numbers; print({'torch', 'triton', 'numpy'} & set(sys.modules))"
        assert python(program) == "set()\n"

    def test_no_room_is_called_utils_common_or_helpers(self):
        names = {part for path in SOURCES for part in path.relative_to(PACKAGE).with_suffix("").parts}
        assert not names & {"utils", "util", "common", "helpers", "misc"}


class TestTheNameKernels:
    """PyPI has a package that is imported as `kernels` too, and transformers imports it when it finds it."""

    @pytest.fixture
    def other_kernels(self, tmp_path) -> Path:
        """A folder with a package `kernels` in it, as pip would install it."""
        site = tmp_path / "site"
        (site / "kernels").mkdir(parents=True)
        names = ("Device", "LayerRepository", "Mode", "register_kernel_mapping", "replace_kernel_forward_from_hub")
        stubs = "".join(f"class {name}:\n    pass\n\n\n" for name in names)
        (site / "kernels" / "__init__.py").write_text(f'WHOSE = "the other one"\n{stubs}')
        (site / "kernels" / "layer.py").write_text('PLACE = "submodule of the other one"\n')
        metadata = site / "kernels-0.17.2.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.17.2\n")
        return site

    def test_from_the_repository_root_transformers_imports_without_the_other_package(self):
        program = """
            import transformers
            from transformers import OPTConfig, OPTForCausalLM, Trainer
            import xgblora.kernels
            print(xgblora.kernels.__file__)
        """
        assert Path(python(program, path=(ROOT,)).strip()) == ROOT / "kernels" / "__init__.py"

    def test_with_the_other_package_the_name_gives_that_one(self, other_kernels):
        program = """
            import kernels, xgblora.kernels
            import kernels.layer
            from kernels import Device
            print(kernels.WHOSE, kernels.layer.PLACE, xgblora.kernels.__file__, sep="|")
            print(hasattr(xgblora.kernels, "WHOSE"))
        """
        ours, marked = python(program, path=(ROOT, other_kernels)).splitlines()
        whose, place, file = ours.split("|")
        assert whose == "the other one"
        assert place == "submodule of the other one"
        assert Path(file) == ROOT / "kernels" / "__init__.py"
        assert marked == "False"

    def test_the_order_of_the_imports_does_not_matter(self, other_kernels):
        program = "import xgblora.kernels, kernels; print(kernels.WHOSE, xgblora.kernels.__name__)"
        assert python(program, path=(ROOT, other_kernels)) == "the other one xgblora.kernels\n"

    def test_the_root_as_the_current_folder_is_seen_as_the_root(self, other_kernels):
        program = "import sys; sys.path.insert(0, ''); import kernels; print(kernels.WHOSE)"
        assert python(program, path=(other_kernels,)) == "the other one\n"

    def test_transformers_imports_with_the_other_package(self, other_kernels):
        program = """
            import transformers
            from transformers import OPTConfig, OPTForCausalLM
            import kernels
            OPTForCausalLM(OPTConfig(vocab_size=8, hidden_size=8, word_embed_proj_dim=8, num_hidden_layers=1, ffn_dim=8,
                                     num_attention_heads=2, max_position_embeddings=8))
            print(kernels.WHOSE)
        """
        assert python(program, path=(ROOT, other_kernels)) == "the other one\n"

    def test_without_the_other_package_the_name_is_ours_and_imports_no_triton(self):
        printed = python("import sys, kernels; print(kernels.__file__, 'triton' in sys.modules)", path=(ROOT,))
        assert printed.split() == [str(ROOT / "kernels" / "__init__.py"), "False"]


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

    def test_the_build_needs_no_torch(self):
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
