"""What a project has beside its code: the citation, the changelog, the workflow."""

import re

import yaml

import xgblora
from tests.docs.pages import ROOT


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["title"], citation["version"]) == ("xgblora", xgblora.__version__)
    assert citation["license"] == "Apache-2.0"


def test_the_changelog_has_this_version_first():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+?),? ", text, flags=re.MULTILINE)[0] == xgblora.__version__


def test_the_workflow_does_what_ci_does():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
