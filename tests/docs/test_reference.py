"""The reference is made from the code, is what the code says now, and the code says something of every name."""

import inspect
import re

import pytest

from tests.docs.pages import ROOT
from tests.fixtures.files import imported


@pytest.fixture(scope="module")
def script():
    with imported(ROOT / "scripts" / "reference_pages.py") as module:
        yield module


@pytest.mark.parametrize("name", ["api.md", "flags.md", "environment.md"])
def test_a_page_is_what_the_script_makes(script, name):
    page = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert page == script.pages()[name], "run python scripts/reference_pages.py"


class TestDocstrings:
    """The stated form: a sentence first, every argument by its name, every InputError."""

    def test_every_name_begins_with_a_sentence(self, script):
        for name, value in script.public_names().items():
            functions = script.members(value) if inspect.isclass(value) else {}
            for what, documented in {name: value, **functions}.items():
                first = inspect.cleandoc(documented.__doc__).split("\n\n")[0]
                assert re.search(r"[.:]$", first), (name, what)

    def test_every_argument_is_named(self, script):
        for name, value in script.public_names().items():
            if name in ("xgblora.XGBLoRAArguments", "xgblora.InputError"):
                # its arguments are flags; and an error's is its message
                continue
            for parameter in set(inspect.signature(value).parameters) - {"args", "kwargs"}:
                assert re.search(rf"\b{parameter}\b", value.__doc__), (name, parameter)

    def test_an_error_that_is_raised_is_named(self, script):
        for name, value in script.public_names().items():
            functions = script.members(value).values() if inspect.isclass(value) else [value]
            for function in functions:
                source = inspect.getsource(function)
                if "raise InputError" in source:
                    assert "InputError" in function.__doc__ + value.__doc__, (name, function)


class TestFlags:
    """Every flag of every command says what it does, in a sentence."""

    def test_every_flag_has_a_sentence(self, script):
        rows = re.findall(r"^\| `--(\w+)` \| .*? \| (.*) \|$", script.flags_page(), flags=re.MULTILINE)
        assert len(rows) > 90
        from xgblora.training.arguments import AdapterArguments
        from xgblora.training.flag import flags_of
        from xgblora.training.task_flags import TaskArguments

        ours = {*flags_of(TaskArguments), *flags_of(AdapterArguments)}
        said = dict(rows)
        assert ours <= said.keys()
        for name, sentence in rows:
            assert len(sentence) > 10, name
            if name in ours:
                assert re.match(r"[A-Z0-9].*[.)]$|\w+: .*\.$", sentence), (name, sentence)


class TestVariables:
    """Every environment variable that the code reads is in the table."""

    def test_all_that_the_code_names(self, script):
        sources = [*(ROOT / "xgblora").rglob("*.py"), *(ROOT / "csrc").glob("*.py"), ROOT / "setup.py"]
        named = set().union(*(re.findall(r"\bXGBLORA_[A-Z_]+\b", path.read_text(encoding="utf-8")) for path in sources))
        assert named
        assert named <= script.VARIABLES.keys()

    def test_all_that_xgblora_env_prints(self, script):
        from xgblora.cli.env import environment_variables

        assert {name for name, _ in environment_variables()} <= script.VARIABLES.keys()
