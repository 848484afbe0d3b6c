"""Several processes compare together: they take part in the same runs, and the first one leaves the comparison."""

import json
import os

from tests.fixtures.runs import Run
from tests.fixtures.together import COMMAND, LONG
from xgblora.cli.compare import main
from xgblora.comparison import runs

FLAGS = ("--max_steps=6", "--eval_steps=3", "--xgblora_steps_per_iteration=3", "--num_eval=4", "--methods")


def without_seed(flags):
    return [flag for flag in flags if not flag.startswith("--seed")]


def test_each_process_starts_its_part_of_every_run_and_the_first_one_writes(start_processes, tiny_flags, tmp_path):
    def work(number):
        started = []
        # a run that fails, so that there is nothing to draw
        runs.start_process = lambda run, keep_open=(): started.append((run.name, os.environ["MASTER_PORT"])) or 3
        os.makedirs(tmp_path / str(number))
        os.chdir(tmp_path / str(number))
        status = 0
        try:
            main([*without_seed(tiny_flags), *FLAGS, "lora_zo", "xgblora_zo", "--seeds=5", "--output_root=cmp"])
        except SystemExit as end:
            status = end.code
        return status, started

    first, second = (one.value for one in start_processes(2, work).ended())
    assert (first[0], second[0]) == (1, 0)
    assert first[1] == second[1]
    assert [name for name, _ in first[1]] == ["lora_zo-seed5", "xgblora_zo-seed5"]
    assert first[1][0][1] != first[1][1][1]
    result = json.loads((tmp_path / "0" / "cmp" / "comparison.json").read_text(encoding="utf-8"))
    assert [run["exit_status"] for run in result["unfinished_runs"]] == [3, 3]
    assert not list((tmp_path / "1").iterdir())


def test_two_processes_that_cannot_compare_end_with_one_line(start_processes, tiny_flags, tmp_path):
    flags = [*without_seed(tiny_flags), *FLAGS, "lora_zo", f"--output_root={tmp_path}/cmp"]
    ended = start_processes(2, lambda number: main([*flags, f"--seeds={-number}"])).ended()
    assert [one.status for one in ended] == [2, 2]
    assert len(ended[0].errors) == 1 and ended[0].errors[0].startswith("error: process 1: seeds=-1")
    assert ended[1].errors == []


@LONG
def test_a_comparison_of_torchrun_leaves_what_runs_of_as_many_processes_leave(torchrun, tiny_flags, tmp_path):
    flags = [*without_seed(tiny_flags), *FLAGS, "lora_zo", "xgblora_zo", "--seeds=3"]
    done = torchrun(COMMAND.with_name("xgblora-compare"), *flags, f"--output_root={tmp_path}/cmp")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "cmp" / "comparison.json").read_text(encoding="utf-8"))
    assert result["unfinished_runs"] == [] and len(result["runs"]) == 2
    alone = ["--xgblora", "--save_model=false", *(flag for flag in FLAGS if flag != "--methods")]
    assert torchrun(COMMAND, *tiny_flags, *alone, f"--output_dir={tmp_path}/run").returncode == 0
    assert Run(tmp_path / "cmp" / "xgblora_zo-seed3").losses == Run(tmp_path / "run").losses
