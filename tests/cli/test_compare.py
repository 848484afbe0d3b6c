"""`xgblora-compare`: whole comparisons, stopped and started again, and bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xgblora.cli.compare import main
from xgblora.comparison import figures, runs
from xgblora.training.trainer import XGBLoRATrainer

SMALL = (
    *("--max_steps=6", "--eval_steps=3", "--xgblora_steps_per_iteration=3", "--num_eval=4", "--lora_rank=2"),
    *("--output_root=cmp", "--methods", "lora_zo", "xgblora_zo"),
)


@pytest.fixture(scope="session")
def common_flags(tiny_flags):
    """The flags of a tiny run without its seed, which the comparison sets."""
    return [flag for flag in tiny_flags if not flag.startswith("--seed")]


@pytest.fixture
def started(monkeypatch, train_tiny) -> list[str]:
    """Let runs be run in this process, and figures be empty; the names of those that were started."""
    names = []

    def draw(path, *args, **keywords) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")

    monkeypatch.setattr(figures, "draw", draw)

    def start(run, keep_open=()) -> int:
        names.append(run.name)
        try:
            train_tiny(None, *run.words)
        except SystemExit as exit:
            return exit.code
        return 0

    monkeypatch.setattr(runs, "start_process", start)
    return names


@pytest.fixture
def compare(command, common_flags):
    """A function `(*flags)` that compares on the tiny model in an empty folder, and gives its `Ending`."""
    return lambda *flags: command(main, *common_flags, *flags)


def result(root: str = "cmp") -> dict:
    return json.loads(Path(root, "comparison.json").read_text(encoding="utf-8"))


def without_measurements(value):
    if isinstance(value, dict):
        return {name: without_measurements(item) for name, item in value.items() if name != "measured"}
    return [without_measurements(item) for item in value] if isinstance(value, list) else value


def test_stopped_in_the_middle_and_started_again_it_is_the_same_comparison(compare, started, tmp_path, monkeypatch):
    flags = [*SMALL, "--methods", "lora_zo", "xgblora_zo", "--seeds", "5", "--save_strategy=steps", "--save_steps=2"]
    ending = compare(*flags)
    assert ending.status == 0, ending.errors
    whole = result()
    names = ["lora_zo-seed5", "xgblora_zo-seed5"]
    assert started == names
    again = tmp_path / "again"
    again.mkdir()
    monkeypatch.chdir(again)
    step = XGBLoRATrainer.training_step

    def interrupted(trainer, *args, **keywords):
        # as soon as the second run has something to go on from, and a rest to run
        if trainer.args.boosts and Path(trainer.args.output_dir, "checkpoint-4", "manifest.json").exists():
            raise KeyboardInterrupt
        return step(trainer, *args, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(XGBLoRATrainer, "training_step", interrupted)
        patched.setattr(runs, "start_process", interruptible(runs.start_process))
        assert compare(*flags).status == 130
    assert not Path("cmp/comparison.json").exists()
    started.clear()
    ending = compare(*flags)
    assert ending.status == 0, ending.errors
    assert "2 runs, 1 of them finished already" in ending.output
    assert started == names[1:]
    assert "resuming from" in Path("cmp/xgblora_zo-seed5/train.log").read_text()
    assert without_measurements(result()) == without_measurements(whole)
    started.clear()
    assert compare(*flags).status == 0
    assert started == []
    assert without_measurements(result()) == without_measurements(whole)


def interruptible(start):
    """`start`, with the interrupt that the command in it turns into a status raised again."""

    def run(*args) -> int:
        status = start(*args)
        if status == 130:
            raise KeyboardInterrupt
        return status

    return run


def test_a_finished_run_with_other_settings_is_never_reused(compare, started, refused):
    flags = [*SMALL, "--methods", "lora_zo", "--seeds", "0"]
    assert compare(*flags).status == 0
    said = ("lora_zo-seed0 was run with zo_eps=0.001, and now it is 0.002", "--skip_completed false")
    refused(compare(*flags, "--zo_eps=2e-3"), *said)
    assert compare(*flags, "--zo_eps=2e-3", "--skip_completed=false").status == 0
    assert result()["runs"][0]["configuration"]["zo_eps"] == 2e-3
    assert started == ["lora_zo-seed0"] * 2


def test_a_sweep_with_a_variant_that_merges_only_at_the_end(compare, started, tmp_path):
    """A variant that merges at the last step and LoRA of rank 1 coincide, which the summary says."""
    variants = tmp_path / "variants.yaml"
    variants.write_text("late:\n  base: xgblora_zo\n  xgblora_steps_per_iteration: 6\n")
    flags = ["--methods", "lora_zo", "late", "--variants", variants, "--seeds", "0", "--lora_rank", "1"]
    ending = compare(*SMALL, *flags, "--sweep", "learning_rate=1e-2,3e-2")
    assert ending.status == 0, ending.errors
    assert started == [
        f"{method}-seed0-learning_rate-{rate}" for method in ("lora_zo", "late") for rate in ("0.01", "0.03")
    ]
    made = result()
    assert [setting["method"] for setting in made["settings"]] == ["lora_zo", "lora_zo", "late", "late"]
    assert made["identical_step_losses"] == [{"methods": ["lora_zo", "late"], "by_seed": {"0": True}}]
    assert made["methods"]["late"]["setting"] == made["methods"]["lora_zo"]["setting"]
    assert "lora_zo and late: the same losses step by step, bit for bit, on 1 of 1 seeds" in ending.output
    assert "chosen (*) on the development set:" in ending.output
    configuration = made["runs"][-1]["configuration"]
    assert (configuration["xgblora_steps_per_iteration"], configuration["xgblora_merge_frequency"]) == (6, 0)


def test_full_parameters_beside_adapters(compare, started):
    """The flags of adapters that all methods share do not reach the method that has none."""
    flags = ["--methods", "lora_zo", "mezo_full", "--seeds", "0", "--staged_eval=false", "--zo_pairing=paired"]
    ending = compare(*SMALL, *flags)
    assert ending.status == 0, ending.errors
    made = result()
    adapters, full = (run["configuration"] for run in made["runs"])
    assert (adapters["method"], adapters["rank"], adapters["zo_pairing"]) == ("lora", 2, "paired")
    assert (full["method"], full["rank"], full["alpha"], full["zo_pairing"]) == ("full", None, None, "sequential")
    assert full["xgblora_steps_per_iteration"] == 0
    assert "mezo_full" in ending.output
    assert made["runs"][1]["trainable_parameters"] > 10 * made["runs"][0]["trainable_parameters"]


def test_a_population_beside_zeroth_order_has_as_many_forwards(compare, started):
    """Its steps, and those between its evaluations, are fewer by as much as its steps have more forwards."""
    flags = ["--methods", "xgblora_zo", "population", "--seeds", "0", "--objective=accuracy", "--max_steps=12"]
    ending = compare(*SMALL, *flags, "--eval_steps=6", "--members=4", "--learning_rate=0.5", "--recipe=boost")
    assert ending.status == 0, ending.errors
    made = result()
    zo, population = (run["configuration"] for run in made["runs"])
    assert [zo[name] for name in ("max_steps", "eval_steps", "learning_rate")] == [12, 6, 0.5]
    assert [population[name] for name in ("max_steps", "eval_steps", "learning_rate", "members")] == [6, 3, 0.03, 4]
    assert (population["objective"], population["merge_rule"]) == ("accuracy", "each step is a booster, merged at once")
    assert [run["forwards"] for run in made["runs"]] == [24, 24]
    assert made["runs"][1]["estimator"]["members"] == 4
    assert [entry["step"] for entry in made["runs"][1]["evaluations"]] == [0, 3, 6]
    assert "training loss by forwards" in ending.output
    assert [{difference["method"], difference["over"]} for difference in made["differences"]] == [
        {"xgblora_zo", "population"}
    ]
    assert Path("cmp/metric_by_forwards.png").exists()


def test_a_run_that_crashes_is_reported_and_the_others_go_on(compare, started, monkeypatch):
    start = runs.start_process

    def crashing(run, keep_open=()) -> int:
        if run.method.name == "lora_zo":
            run.console.write_text("Traceback\nRuntimeError: no memory\n")
            return -9
        return start(run)

    monkeypatch.setattr(runs, "start_process", crashing)
    ending = compare(*SMALL, "--seeds", "0")
    assert ending.status == 0
    made = result()
    assert list(made["methods"]) == ["xgblora_zo"]
    assert made["unfinished_runs"][0]["exit_status"] == -9
    assert "lora_zo-seed0 ended with status -9 (RuntimeError: no memory)" in ending.output
    monkeypatch.setattr(runs, "start_process", start)
    assert compare(*SMALL, "--seeds", "0").status == 0
    assert started == ["xgblora_zo-seed0", "lora_zo-seed0"]
    assert result()["unfinished_runs"] == []


def test_when_every_run_crashes_the_status_says_so(compare, monkeypatch):
    monkeypatch.setattr(runs, "start_process", lambda run, keep_open=(): 1)
    ending = compare(*SMALL, "--seeds", "0")
    assert ending.status == 1
    assert "no run has finished" in ending.output
    assert Path("cmp/comparison.json").exists()


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--seeds", "1", "2", "1"], ["seeds=1", "given twice"]),
        (["--seeds"], ["--seeds", "expected at least one argument"]),
        (["--seeds", "-1"], ["seeds=-1"]),
        (["--methods", "mezo"], ["methods=mezo:", "lora_zo, xgblora_zo, lora_fo, xgblora_fo"]),
        (["--methods", "lora_zo", "lora_zo"], ["methods=lora_zo", "given twice"]),
        (["--sweep", "learning_rat=1"], ["sweep=learning_rat=1", "is no flag"]),
        (["--sweep", "learning_rate="], ["sweep=learning_rate=", "value is missing"]),
        (["--sweep", "learning_rate=1e-4", "--num_dev=0"], ["num_dev=0", "development set"]),
        (["--sweep", "learning_rate=-1"], ["lora_zo", "learning_rate=-1.0"]),
        (["--variants", "nowhere.yaml"], ["variants=nowhere.yaml", "no such file"]),
        (["--seed=3"], ["--seed", "use --seeds"]),
        (["--lora"], ["--lora", "use --methods"]),
        (["--full"], ["--full", "use --methods"]),
        (["--output_dir=x"], ["--output_dir", "use --output_root"]),
        (["--metods", "lora_zo"], ["--metods", "did you mean --methods?"]),
        (["--lora_rnk=2"], ["--lora_rnk", "unknown flag", "did you mean"]),
        (["--lora_rank=0"], ["lora_r=0", "1 or more"]),
        (["--num_train=1000"], ["num_train=1000", "48 examples"]),
        (["--num_demos=2"], ["num_demos=2", "is for evaluation without training"]),
        (["--model_name=./nowhere"], ["model_name=./nowhere", "no such folder"]),
        (["--objective=accuracy"], ["methods=lora_fo: objective=accuracy", "no gradient"]),
        (
            ["--methods", "population", "--members=6", "--max_steps=7"],
            ["population: members=6: max_steps=7", "14 forw"],
        ),
        (["--methods", "lora_zo", "mezo_full", "--device_map=auto"], ["mezo_full: device_map=auto: --full"]),
        (["--metric_for_best_model=f1"], ["metric_for_best_model=f1: must be loss or accuracy"]),
        (["--methods", "xgblora_zo", "--num_dev=0", "--staged_eval"], ["num_dev=0: staged_eval needs development"]),
        (
            ["--dataloader_drop_last=true", "--per_device_train_batch_size=99"],
            ["dataloader_drop_last=True: drops the only batch"],
        ),
        (["--reward=a.py:b"], ["--reward", "on a task, without rewards"]),
        (["--output_root=/proc/nothing"], ["output_root=/proc"]),
        (["--loss_figure_path=."], ["loss_figure_path=.: is a folder"]),
        (["--loss_figure_path=/dev/null/figure.png"], ["loss_figure_path=/dev/null/figure.png: ", "is a file"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_bad_input_is_one_line_before_anything_runs(compare, started, refused, flags, said):
    refused(compare(*flags), *said)
    assert started == []
    assert list(Path.cwd().iterdir()) == []


def test_help_shows_the_flags_of_the_comparison_and_not_those_that_it_sets(command):
    ending = command(main, "--help")
    assert ending.status == 0
    for flag in ("--methods", "--seeds", "--sweep", "--variants", "--lora_rank", "--output_root", "--learning_rate"):
        assert flag in ending.output
    assert "--resume_from_checkpoint" not in ending.output
    assert "--push_to_hub" not in ending.output


def test_a_flag_file_is_read(command, common_flags, started, flag_file):
    path = flag_file("methods: [xgblora_fo]\nseeds: [4]\nmax_steps: 2\noutput_root: here\nlora_rank: 3")
    ending = command(main, path, *common_flags)
    assert ending.status == 0, ending.errors
    assert started == ["xgblora_fo-seed4"]
    configuration = result("here")["runs"][0]["configuration"]
    assert (configuration["trainer"], configuration["rank"]) == ("regular", 1)


def test_in_processes_of_their_own(common_flags, tmp_path):
    program = "from xgblora.cli.compare import main; main()"
    flags = [*common_flags, *SMALL, "--methods", "xgblora_zo", "--seeds", "0", "--max_steps=3"]
    done = subprocess.run(
        [sys.executable, "-c", program, *flags],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "[1/1] xgblora_zo-seed0 ... held-out accuracy" in done.stdout
    root = tmp_path / "cmp"
    names = {"comparison.json", "summary.txt", "loss.png", "loss_by_forwards.png", "metric.png", "loss_at_merges.png"}
    assert {*names, "report.html"} <= {path.name for path in root.iterdir()}
    assert json.loads((root / "comparison.json").read_text())["methods"]["xgblora_zo"]["held_out"]["n"] == 1
    assert "Merging and reinitializing at step 3" in (root / "xgblora_zo-seed0" / "console.log").read_text()


def test_a_dry_run_lists_the_runs_and_starts_none(compare, started):
    ending = compare(*SMALL, "--seeds", "5", "--dry_run")
    assert ending.status == 0, ending.errors
    assert started == []
    assert list(Path.cwd().iterdir()) == []
    rows = [line.split() for line in ending.output.splitlines()]
    assert rows[0][-2:] == ["2", "runs"]
    assert "merge_rule" in rows[1]
    assert [row[0] for row in rows[3:]] == ["lora_zo", "xgblora_zo"]
    assert [row[-1] for row in rows[3:]] == ["cmp/lora_zo-seed5", "cmp/xgblora_zo-seed5"]
    assert "to run" in ending.output
