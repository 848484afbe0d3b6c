"""Runs by rewards: what they leave, that they go on to the bit, and that seeds and fitness give the weights again."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from tests.fixtures.runs import unchanged_logger
from xgblora.boosting import Ledger
from xgblora.boosting.merged import MergedNoise
from xgblora.cli.train import main
from xgblora.replaying.from_ledger import rebuild
from xgblora.runs import evolve

REWARDS = """
def letters(prompt, completion, row):
    return sum(one in "aeiou" for one in completion) / 20

def picky(prompt, completion, row):
    if row["number"] == 1:
        raise KeyError("number")
    return len(completion) / 20
"""


@pytest.fixture
def run_in(tiny_model_folder, tmp_path, monkeypatch):
    """A function `(folder, *flags)` that runs `xgblora-train --trainer population`, and gives its status."""
    monkeypatch.chdir(tmp_path)
    Path("rewards.py").write_text(REWARDS, encoding="utf-8")
    rows = [{"number": number, "text": f"the film {number} was"} for number in range(6)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    good = {
        "model_name": tiny_model_folder,
        "trainer": "population",
        "reward": "rewards.py:letters",
        "prompts": "rows.jsonl",
        "eval_prompts": "rows.jsonl",
        "prompt_template": "{text}",
        "dtype": "bfloat16",
        "members": 4,
        "sigma": 0.1,
        "learning_rate": 0.2,
        "prompts_per_step": 2,
        "max_new_tokens": 4,
        "max_steps": 5,
        "logging_steps": 2,
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
    }

    def run(folder: str, *flags: str) -> int:
        words = [f"--{name}={value}" for name, value in good.items()]
        with unchanged_logger():
            try:
                main([*words, f"--output_dir={folder}", "--use_cpu", *flags])
            except SystemExit as exit:
                return exit.code
        return 0

    return run


def lines_of(name: str) -> list[str]:
    return Path(name).read_text(encoding="utf-8").splitlines()


def test_what_a_run_leaves(run_in):
    assert run_in("run") == 0
    heading, *steps = lines_of("run/step_reward.csv")
    assert heading == "step,mean,best,failed,sigma,lr,truncated,letters"
    assert [line.split(",")[0] for line in steps] == ["1", "2", "3", "4", "5"]
    evaluations = [json.loads(line) for line in lines_of("run/eval_reward.jsonl")]
    assert [entry["step"] for entry in evaluations] == [0, 2, 4, 5]
    samples = [json.loads(line) for line in lines_of("run/completions.jsonl")]
    assert {sample["by"].split()[0] for sample in samples} == {"held-out", "member"}
    vowels = [sum(one in "aeiou" for one in sample["completion"]) / 20 for sample in samples]
    assert [sample["reward"] for sample in samples] == vowels
    metrics = json.loads(Path("run/metrics.json").read_text(encoding="utf-8"))
    assert metrics["results"]["zero_shot"]["eval"]["reward"] == evaluations[0]["reward"]
    assert metrics["results"]["trained"]["eval"]["reward"] == evaluations[-1]["reward"]
    names = {path.name for path in Path("run").iterdir()}
    assert names >= {"reward.png", "train.log", "boosters.safetensors", "model", "checkpoint-4", "checkpoint-5"}
    assert run_in("run") == 2


def test_a_stopped_run_goes_on_to_the_bit_and_seeds_and_fitness_give_its_weights(
    run_in, tiny_model_folder, monkeypatch
):
    assert run_in("whole") == 0
    step = evolve.Evolution.step

    def stopping(evolution):
        if evolution.population.step == 3:
            raise KeyboardInterrupt
        return step(evolution)

    with monkeypatch.context() as patched:
        patched.setattr(evolve.Evolution, "step", stopping)
        assert run_in("stopped") == 130
    assert len(lines_of("stopped/step_reward.csv")) == 4
    with open("stopped/step_reward.csv", "a", encoding="utf-8") as file:
        file.write("4,0.2")
    assert run_in("stopped", "--resume_from_checkpoint=last") == 0
    for name in ("step_reward.csv", "eval_reward.jsonl", "completions.jsonl"):
        assert lines_of(f"stopped/{name}") == lines_of(f"whole/{name}")
    ledger = Ledger.load(Path("stopped/boosters.safetensors"))
    assert ledger.boosters
    assert all(isinstance(booster, MergedNoise) for booster in ledger.boosters)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.bfloat16)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    replayed = rebuild(base, ledger)
    ours = {
        layer: weight.clone() for layer, weight in zip(ledger.origin.layers, replayed.adapters.weights(), strict=True)
    }
    for folder in ("whole", "stopped"):
        trained = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.bfloat16).state_dict()
        assert all(torch.equal(trained[f"{layer}.weight"], weight) for layer, weight in ours.items())
        assert not all(torch.equal(trained[name], weight) for name, weight in before.items())


def test_what_is_reported_elsewhere_is_what_the_files_have_and_a_run_that_goes_on_reports_no_step_again(
    run_in, monkeypatch
):
    heard = []

    class Reporter(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            heard.append((state.global_step, "begun"))

        def on_log(self, args, state, control, logs=None, **kwargs):
            heard.append((state.global_step, logs))

        def on_train_end(self, args, state, control, **kwargs):
            heard.append((state.global_step, "ended"))

    monkeypatch.setattr("xgblora.training.report_rewards.get_reporting_integration_callbacks", lambda to: [Reporter])
    two = ("--reward", "rewards.py:letters", "rewards.py:picky")
    assert run_in("run", *two, "--max_steps=4") == 0
    assert [number for number, _ in heard] == [0, 0, 2, 2, 4, 4, 4]
    assert (heard[0][1], heard[-1][1]) == ("begun", "ended")
    heading, _, second, *_ = (line.split(",") for line in lines_of("run/step_reward.csv"))
    columns = dict(zip(heading, second, strict=True))
    of_step, held_out = heard[2][1], heard[3][1]
    assert of_step["reward"] == float(columns["mean"])
    assert of_step["reward/letters"] == float(columns["letters"])
    assert set(of_step) == {
        *("reward", "reward_best", "reward/letters", "reward/picky"),
        *("failed", "truncated", "sigma", "learning_rate"),
    }
    written = json.loads(lines_of("run/eval_reward.jsonl")[1])
    assert held_out == {
        "eval_reward": written["reward"],
        **{f"eval_reward/{name}": value for name, value in written["rewards"].items()},
    }
    heard.clear()
    assert run_in("run", *two, "--resume_from_checkpoint=last") == 0
    assert [number for number, _ in heard] == [4, 5, 5, 5]


def test_what_decides_the_run_is_the_same_when_it_goes_on_and_what_stands_in_the_reward_file_does(run_in, capsys):
    assert run_in("run", "--max_steps=2") == 0
    assert run_in("run", "--resume_from_checkpoint=last", "--sigma=0.3") == 2
    assert "sigma is 0.1 there and 0.3 here" in capsys.readouterr().err
    Path("rewards.py").write_text(REWARDS.replace("aeiou", "aeiouy"), encoding="utf-8")
    assert run_in("run", "--resume_from_checkpoint=last") == 2
    assert "it is of another run: the digest of rewards.py is " in capsys.readouterr().err


def test_rate_and_sigma_follow_their_schedules(run_in):
    flags = ("--lr_scheduler_type=linear", "--warmup_steps=2", "--sigma_end=0.5", "--save_model=false")
    assert run_in("run", *flags) == 0
    rows = [line.split(",") for line in lines_of("run/step_reward.csv")]
    sigma, rate = (rows[0].index(name) for name in ("sigma", "lr"))
    assert [float(row[sigma]) for row in rows[1:]] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert [float(row[rate]) for row in rows[1:]] == pytest.approx([0.0, 0.1, 0.2, 0.4 / 3, 0.2 / 3])
    # the first rate is 0
    assert Ledger.load(Path("run/boosters.safetensors")).boosters[0].step == 2


def test_killed_by_the_system_it_goes_on_to_the_bit(run_in, start_processes):
    assert run_in("whole") == 0
    step = evolve.Evolution.step

    def killed(number):
        def stopping(evolution):
            if evolution.population.step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(evolution)

        evolve.Evolution.step = stopping
        return run_in("killed")

    (ended,) = start_processes(1, killed).ended()
    assert ended.status == -signal.SIGKILL
    assert not Path("killed/metrics.json").exists()
    assert run_in("killed", "--resume_from_checkpoint=last") == 0
    for name in ("step_reward.csv", "eval_reward.jsonl", "completions.jsonl"):
        assert lines_of(f"killed/{name}") == lines_of(f"whole/{name}")
    ours, theirs = (load_file(f"{folder}/model/model.safetensors") for folder in ("killed", "whole"))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_a_reward_that_fails_costs_a_member_its_step_or_ends_the_run(run_in, capsys):
    flags = ("--reward=rewards.py:picky", "--prompts_per_step=6", "--max_steps=1", "--save_model=false")
    assert run_in("run", *flags) == 0
    assert lines_of("run/step_reward.csv")[1].split(",")[:4] == ["1", "nan", "nan", "4"]
    assert "reward picky of rows.jsonl line 2: raised KeyError: 'number'" in capsys.readouterr().out
    assert run_in("ended", *flags, "--on_failure=stop") == 2
    assert "raised KeyError" in capsys.readouterr().err


def test_a_second_run_in_its_folder_ends_in_one_line(run_in, start_processes, monkeypatch):
    step, ended = evolve.Evolution.step, []

    def starting_another(evolution):
        if evolution.population.step == 1:
            ended.extend(start_processes(1, lambda number: run_in("run", "--overwrite")).ended())
        return step(evolution)

    monkeypatch.setattr(evolve.Evolution, "step", starting_another)
    assert run_in("run", "--max_steps=2", "--save_model=false") == 0
    assert ended[0].value == 2
    assert ended[0].errors == [
        "error: output_dir=run: another run is at work there; wait for its end, or choose another folder"
    ]
    assert len(lines_of("run/step_reward.csv")) == 3
