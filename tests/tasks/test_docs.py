"""docs/tasks.md says what is so: its example runs, its task files are right, its table is the built-in tasks."""

import re
from pathlib import Path

import pytest

from xgblora.errors import InputError
from xgblora.tasks import TASKS, read_task_file

PAGE = (Path(__file__).parent.parent.parent / "docs" / "tasks.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the page's data and first task file in it."""
    (tmp_path / "meals.csv").write_text(blocks("csv")[0])
    (tmp_path / "meals.yaml").write_text(blocks("yaml")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_is_a_task(folder):
    splits = read_task_file(Path("meals.yaml")).load(None)
    assert (len(splits.train), len(splits.valid)) == (16, 4)
    assert splits.train[0].candidates[1] == "the soup is warm and the staff is friendly . It was great"


def test_its_command_is_taken(folder):
    from xgblora.cli.train import parse

    (command,) = re.findall(r"^    xgblora-train (.*--num_train 12.*)$", PAGE, flags=re.MULTILINE)
    task, _ = parse([*command.split(), "--use_cpu"])
    assert (task.task_file, task.num_train, task.num_dev, task.objective) == ("meals.yaml", 12, 4, "classification")


@pytest.mark.parametrize("number", range(1, 3))
def test_the_other_task_files_are_right(tmp_path, number):
    import json

    text = blocks("yaml")[number]
    row = json.loads(re.search(r"# (\{.*\})", text)[1])
    (tmp_path / "task.yaml").write_text(text)
    sample = read_task_file(tmp_path / "task.yaml").to_sample(row, "here")
    assert sample.candidates[sample.label] in ("How? We go by land", "...\nQuestion: Where?\nAnswer: Rome\n")


@pytest.mark.parametrize(
    "file, old, new",
    [
        ("meals.yaml", "{text} It was", "It was"),
        ("meals.csv", "delightful .,again", "delightful .,agian"),
        ("meals.yaml", "{text}", "{review}"),
    ],
)
def test_errors_are_those_that_it_shows(folder, file, old, new):
    (folder / file).write_text((folder / file).read_text().replace(old, new, 1))
    with pytest.raises(InputError) as error:
        read_task_file(Path("meals.yaml")).load(None)
    assert f"    error: {error.value}\n" in PAGE


@pytest.mark.parametrize("name", TASKS)
def test_the_table_has_every_task(name):
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {name} | "))
    _, prompt, _, metrics, hub, _ = line.strip("| ").split(" | ")
    task = TASKS[name]
    assert (metrics, hub) == (", ".join(task.metrics), " ".join(filter(None, task.hub)))
    template = getattr(getattr(task.to_sample, "__self__", None), "text", None)
    if template:
        assert prompt == f"`{template}`".replace("\n", "⏎")
