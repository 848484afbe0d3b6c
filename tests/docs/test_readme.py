"""The README says what is so: its blocks run, its commands are taken, its files and figures are there."""

import csv
import re
import subprocess
import sys

import pytest

from tests.docs.pages import ROOT, blocks, commands

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_a_page_and_not_a_book():
    assert len(TEXT.split()) <= 1050


def test_its_python_blocks_run_one_after_the_other(in_folder, capsys):
    names: dict = {}
    for block in blocks(README, "python"):
        exec(block, names)
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    assert len(losses) == 40
    # the objective of one's own is minimised, not only called
    assert sum(losses[-5:]) < sum(losses[:5])
    assert (in_folder / "adapter" / "adapter_config.json").is_file()
    assert (in_folder / "boosters.safetensors").is_file()


def test_its_task_is_that_of_the_guide():
    (task,) = blocks(README, "yaml")
    assert task == blocks(ROOT / "docs" / "tasks.md", "yaml")[0]
    assert len(task.splitlines()) == 4
    assert (ROOT / "examples" / "meals.yaml").read_text(encoding="utf-8") == task
    assert (ROOT / "examples" / "meals.csv").read_text(encoding="utf-8") == blocks(ROOT / "docs" / "tasks.md", "csv")[0]


def test_its_training_commands_are_taken():
    from xgblora.cli.train import parse

    found = commands(README, "xgblora-train")
    parsed = [parse([*command, "--use_cpu"]) for command in found]
    assert [task.task_file for task, _ in parsed] == [None, None, "examples/meals.yaml", None]
    assert [args.resume_from_checkpoint for _, args in parsed] == [None, None, None, "last"]


def test_its_comparison_is_taken():
    from xgblora.cli.compare import build_parser, renamed_rank

    (command,) = commands(README, "xgblora-compare")
    parsed, task, training = build_parser(show_all=True).parse([*renamed_rank(command), "--use_cpu"])[:3]
    assert (task.task_name, training.max_steps, list(map(int, parsed.seeds))) == ("SST2", 2000, [0, 1, 2])


def test_the_commands_of_ci_are_those_of_the_page():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'pip install -e ".[test]" -c constraints.txt && pytest -n auto --dist loadfile' in TEXT
    assert "-n auto --dist loadfile" in ci and "-c constraints.txt" in ci


def test_the_marks_that_scripts_and_people_write_between_are_there():
    for mark in ("results", "end of results", "made by scripts/gpu_page.py", "until here"):
        assert TEXT.count(f"<!-- {mark} -->") == 1
    assert TEXT.index("<!-- results -->") < TEXT.index("## ")


class TestFigures:
    """scripts/readme_figures.py draws what the results files have."""

    def test_it_draws_the_three_figures(self, in_folder):
        script = ROOT / "scripts" / "readme_figures.py"
        subprocess.run([sys.executable, script, "--output", in_folder], check=True)
        drawn = {path.name: path.read_bytes()[:8] for path in in_folder.iterdir()}
        assert drawn == dict.fromkeys(("loop.png", "memory.png", "speed.png"), b"\x89PNG\r\n\x1a\n")

    def test_the_figures_of_the_page_are_those_three_after_the_comparison(self):
        shown = re.findall(r"!\[.*?\]\((.*?)\)", TEXT)
        ours = [f"docs/images/{name}.png" for name in ("loop", "memory", "speed")]
        assert shown == ["docs/comparison/boost.png", *ours]
        assert all((ROOT / path).is_file() for path in shown)

    def test_without_a_file_it_says_so(self, in_folder):
        script = ROOT / "scripts" / "readme_figures.py"
        command = [sys.executable, script, "--output", in_folder, "--memory", "none.csv"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, "error: none.csv: there is no such file\n")

    def test_a_zeroth_order_step_needs_little_more_than_inference(self):
        with open(ROOT / "benchmarks" / "results" / "memory.csv", encoding="utf-8", newline="") as file:
            total = {row["way"]: int(row["weights_bytes"]) + int(row["peak_bytes"]) for row in csv.DictReader(file)}
        assert total["inference"] < total["zeroth_order"] < 1.1 * total["inference"]
        assert total["zeroth_order"] < total["lora_adamw"] < total["full_adamw"]
