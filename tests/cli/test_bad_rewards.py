"""Runs by rewards refuse bad input in one line, and write nothing."""

import json
from pathlib import Path

import pytest

REWARDS = "def good(prompt, completion, row):\n    return 1.0\n\ndef two(prompt, completion):\n    return 1.0\n"
FLAGS = {"trainer": "population", "reward": "../rewards.py:good", "prompts": "../rows.jsonl", "prompt_template": "{a}"}


@pytest.mark.parametrize(
    "flags, said",
    [
        ({"reward": "../rewards.py:better"}, ["rewards.py:better", "good"]),
        ({"reward": "../nowhere.py:good"}, ["there is no file ../nowhere.py"]),
        ({"reward": None}, ["reward is missing"]),
        ({"prompts": "../nowhere.jsonl"}, ["prompts=../nowhere.jsonl"]),
        ({"prompt_template": "{b}"}, ["rows.jsonl line 1", "b"]),
        ({"prompt_template": None}, ["no chat template"]),
        ({"members": 5}, ["members=5", "even"]),
        ({"members": 5, "pairs": "false", "shaping": "best-of-pairs"}, ["shaping=best-of-pairs", "--pairs"]),
        ({"temperature": 0, "completions": 2}, ["temperature=0", "completions=2"]),
        ({"prompts_per_step": 3}, ["prompts_per_step=3", "2 rows"]),
        ({"sigma": 0}, ["sigma=0", "positive"]),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, ["lr_scheduler_type=reduce_lr_on_plateau", "linear"]),
        ({"sigma_end": 0}, ["sigma_end=0", "positive"]),
        ({"reward": None, "prompts": None}, ["prompt_template={a}", "is for rewards"]),
        ({"save_strategy": "epoch"}, ["save_strategy=epoch", "steps"]),
        ({"lora": "true"}, ["lora=True"]),
        ({"task_name": "SST2"}, ["task_name=SST2", "--prompts"]),
        ({"num_train": 3}, ["num_train=3", "--prompts"]),
        ({"head": "true"}, ["head=True", "--prompts"]),
        ({"reward_weights": 0}, ["reward_weights=0", "not be 0"]),
        ({"reward": "../rewards.py:two"}, ["rewards.py:two: must be a function of (prompt, completion, row)"]),
        ({"trainer": "zo"}, ["reward=", "--trainer population"]),
    ],
)
def test_one_line_and_nothing_written(train_command, refused, tiny_model_folder, tmp_path, flags, said):
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"a": word}) + "\n" for word in "xy"), encoding="utf-8")
    given = {"model_name": tiny_model_folder, "use_cpu": "true", "prompts_per_step": 2, **FLAGS, **flags}
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    refused(train_command(*words, defaults=False), *said)
    assert list(Path.cwd().iterdir()) == []
