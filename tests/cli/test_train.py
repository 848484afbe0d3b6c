"""`xgblora-train`: flags from files, help, and a whole run."""

import json
from pathlib import Path

import pytest

from xgblora.cli.train import parse


@pytest.fixture
def demo_free():
    """A model name, so that the demonstration's flags stay out."""
    return "--model_name=some-model"


def test_a_run_shows_the_block_and_the_table_and_says_where_things_are(train_command):
    ending = train_command("--xgblora_steps_per_iteration=2")
    assert ending.status == 0
    lines = ending.output.splitlines()
    assert "Actual rank used: 1 (forced to 1 for XGBLoRA)" in lines
    assert "XGBLoRA: Merging and reinitializing at step 2" in lines
    assert any(line.startswith("accuracy, held-out set") for line in lines)
    assert f"metrics: {Path('run') / 'metrics.json'}" in lines
    log = Path("run/train.log").read_text(encoding="utf-8").splitlines()
    assert [line[20:].rstrip() for line in log] == [line.rstrip() for line in lines]


@pytest.mark.parametrize("name, dump", [("flags.yaml", None), ("flags.yml", None), ("flags.json", json.dumps)])
def test_flags_come_from_a_file_and_the_command_line_wins(flag_file, name, dump):
    flags = {"model_name": "m", "lora_alpha": 8, "learning_rate": 0.5, "lora": True, "target_modules": ["fc1", "fc2"]}
    text = dump(flags) if dump else "\n".join(f"{key}: {json.dumps(value)}" for key, value in flags.items())
    task, args = parse([str(flag_file(text, name)), "--learning_rate=0.25", "--use_cpu"])
    assert task.model_name == "m"
    assert args.lora_alpha == 8.0
    assert args.learning_rate == 0.25
    assert args.lora is True
    assert args.target_modules == ["fc1", "fc2"]


def test_the_command_line_wins_over_lists_and_switches_of_a_file(flag_file):
    path = flag_file("model_name: m\ntarget_modules: [fc1, fc2]\nlora: true\nsave_model: false")
    task, args = parse([str(path), "--target_modules", "q_proj", "--lora=false", "--save_model=true", "--use_cpu"])
    assert args.target_modules == ["q_proj"]
    assert not args.lora
    assert task.save_model


def test_a_single_name_numbers_in_scientific_notation_and_nothing_at_all(flag_file):
    # YAML reads 1e-3 as text, and a flag without a value as null
    path = flag_file("model_name: m\ntarget_modules: fc1\nlearning_rate: 1e-3\nnum_eval:\nseed: null")
    task, args = parse([str(path), "--use_cpu"])
    assert args.target_modules == ["fc1"]
    assert args.learning_rate == 1e-3
    assert task.num_eval is None
    assert args.seed == 0


def test_an_empty_file_is_no_flags(flag_file, demo_free):
    task, _ = parse([str(flag_file("")), demo_free, "--use_cpu"])
    assert task.model_name == "some-model"


def test_a_mapping_in_a_file_reaches_flags_of_transformers(flag_file):
    path = flag_file("model_name: m\nlr_scheduler_type: polynomial\nlr_scheduler_kwargs: {power: 2}")
    _, args = parse([str(path), "--use_cpu"])
    assert args.lr_scheduler_kwargs == {"power": 2}


def test_hyphens_and_underscores_are_the_same(demo_free):
    _, args = parse([demo_free, "--lora-alpha", "4", "--max-steps=7", "--use_cpu"])
    assert (args.lora_alpha, args.max_steps) == (4.0, 7)


def test_abbreviations_are_not_guessed(train_command):
    ending = train_command("--lora_alph=3")
    assert ending.status == 2
    assert "did you mean --lora_alpha?" in ending.errors[0]


def test_without_a_model_the_demonstration_s_flags_are_taken():
    task, args = parse(["--max_steps=5", "--use_cpu"])
    assert Path(task.model_name).parts[-3:] == ("xgblora", "demo", "opt-demo")
    assert Path(task.data_dir).parts[-3:] == ("xgblora", "demo", "reviews")
    assert args.max_steps == 5


@pytest.mark.parametrize("given", ["--task_name=CB", "--task_file=own.yaml", "--data_dir=own"])
def test_its_model_can_be_trained_on_another_task(given):
    flag, value = given.removeprefix("--").split("=")
    task, _ = parse([given, "--use_cpu"])
    assert Path(task.model_name).name == "opt-demo"
    others = {"task_name": None, "task_file": None, "data_dir": None, flag: value}
    assert {name: getattr(task, name) for name in others} == others
    assert task.objective == "option_nll"


def test_with_a_model_they_are_not(demo_free):
    task, _ = parse([demo_free, "--use_cpu"])
    assert task.data_dir is None
    assert task.objective == "option_nll"


def test_help_shows_our_flags_and_the_common_ones_and_no_other(train_command):
    ending = train_command("--help", defaults=False)
    assert ending.status == 0
    assert ending.errors == []
    for flag in (
        "--model_name",
        "--xgblora",
        "--lora_alpha",
        "--xgblora_steps_per_iteration",
        "--zo_eps",
        "--max_steps",
    ):
        assert flag in ending.output
    assert "--push_to_hub" not in ending.output
    assert "--lora-alpha" not in ending.output


def test_help_all_shows_those_of_transformers_too(train_command):
    ending = train_command("--help_all", defaults=False)
    assert ending.status == 0
    assert "--push_to_hub" in ending.output


def test_every_flag_of_ours_has_help(train_command):
    from xgblora.cli.train import build_parser
    from xgblora.training.arguments import AdapterArguments
    from xgblora.training.task_flags import TaskArguments

    ours = {*TaskArguments.__dataclass_fields__, *AdapterArguments.__dataclass_fields__}
    actions = {action.dest: action.help for action in build_parser(show_all=True)._actions}
    assert ours <= actions.keys()
    assert not [name for name in ours if not actions[name]]


def test_the_demonstration_gains(shared_demo, train_command):
    """The model and the reviews that ship with the package, for a few steps: it runs as it comes."""
    ending = train_command("--max_steps=4", "--num_train=32", "--num_dev=16", "--num_eval=16", defaults=False)
    assert ending.status == 0, ending.errors
    (folder,) = Path("runs").iterdir()
    assert json.loads((folder / "metrics.json").read_text())["training"]["steps"] == 4


@pytest.fixture
def shared_demo():
    """Skips the test where the demonstration's model is not there."""
    from xgblora import demo

    if not Path(demo.flags()["model_name"], "config.json").exists():
        pytest.skip("xgblora/demo/opt-demo is not here")
