"""Which room knows which: imports point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "xgblora"

# A room may import the rooms of lower rank, and those of its own rank as long as no cycle comes of it.
RANKS = {
    "errors": 0,
    "spelling": 0,
    "atomic_file": 0,
    "figure_file": 0,
    "settings_file": 0,
    "environment": 0,
    "freed_memory": 0,
    "eval_mode": 0,
    "short_texts": 0,
    "hub_downloads": 0,
    "process_group": 1,
    "demo": 0,
    "kernels": 1,
    "_C": 1,
    "ops": 2,
    "adapters": 3,
    "tape": 4,
    "zo": 5,
    "boosting": 5,
    "replaying": 6,
    "population": 6,
    "destinations": 6,
    "tasks": 1,
    "scoring": 2,
    "rewards": 2,
    "evaluation": 3,
    "objectives": 4,
    "completions": 5,
    "records": 7,
    "training": 8,
    "runs": 9,
    "comparison": 10,
    "cli": 11,
}
# Below the trainer stand two towers, one of weights and one of texts, and neither knows the other.
OF_WEIGHTS = {"kernels", "_C", "ops", "adapters", "tape", "zo", "boosting", "replaying", "population", "destinations"}
OF_TEXTS = {"tasks", "scoring", "rewards", "evaluation", "objectives"}


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
MODULES |= {f"xgblora.kernels.{path.stem}": path for path in (ROOT / "kernels").glob("[!_]*.py")}


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

    def test_the_numbers_of_the_noise_need_no_package(self, python):
        program = "import sys, xgblora.kernels.noise_numbers; print({'torch', 'triton', 'numpy'} & set(sys.modules))"
        assert python(program) == "set()\n"

    def test_no_room_is_called_utils_common_or_helpers(self):
        names = {part for path in SOURCES for part in path.relative_to(PACKAGE).with_suffix("").parts}
        assert not names & {"utils", "util", "common", "helpers", "misc"}
