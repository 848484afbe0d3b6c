"""A run that is killed with SIGKILL, wherever that is, and resumed until it ends, is the run that was left alone.

`killable_runs.py` runs everything beforehand, two cases at a time; the tests compare what it left. `pytest -rP` shows
where the kills landed.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(
    os.name != "posix" or sys.platform == "darwin", reason="needs fork and SIGKILL as Linux has them"
)

RANDOM_KILLS = 2
# 3 batches an epoch
COMMON = ("--max_steps=12", "--logging_steps=3", "--eval_steps=4", "--save_strategy=steps")
STEPS = ("--xgblora", "--xgblora_steps_per_iteration=3")
EPOCHS = ("--xgblora", "--xgblora_merge_frequency=1", "--eval_strategy=epoch")
SOME = ("--xgblora_reinit=data", "--xgblora_colsample=0.5")
OFTEN, SELDOM = ("--save_steps=1", "--save_total_limit=1"), ("--save_steps=2", "--save_total_limit=2")
CASES = {
    "by steps, sequential": (*STEPS, *OFTEN, "--zo_pairing=sequential", "--xgblora_reinit=residual"),
    "by steps, paired, bf16": (
        *STEPS,
        *SELDOM,
        "--zo_pairing=paired",
        "--xgblora_layers=0.5:1.0",
        "--dtype=bfloat16",
        "--rounding=stochastic",
        "--xgblora_reinit=warm",
    ),
    "by epochs, sequential": (
        *(*EPOCHS, *OFTEN, "--zo_pairing=sequential", "--logging_strategy=epoch"),
        # each kill that is late in a checkpoint brings the run on
        "--max_steps=20",
    ),
    "by epochs, paired, accumulating": (
        *(*EPOCHS, *SELDOM, "--zo_pairing=paired", "--gradient_accumulation_steps=2"),
        *("--lr_scheduler_type=cosine", "--warmup_steps=4", "--weight_decay=0.1"),
        *("--xgblora_reinit=orthogonal", "--xgblora_shrinkage=line_search", "--xgblora_hard_examples=0.5"),
    ),
    "no merge, LoRA, sequential": ("--lora", "--lora_r=2", "--lora_init=data", *SELDOM, "--zo_pairing=sequential"),
    "no merge, paired": ("--xgblora", "--xgblora_merge_frequency=0", *SELDOM, "--zo_pairing=paired"),
    "adaptive, early stopping": (
        *("--xgblora_adaptive_merge", "--eval_steps=1", "--early_stopping_rounds=2", *SELDOM),
        *("--learning_rate=0.3", "--zo_pairing=sequential"),
    ),
    "population, accumulating": (
        *("--trainer=population", "--members=4", "--sigma=0.1", "--sigma_end=0.05", *SELDOM, "--dtype=bfloat16"),
        *("--gradient_accumulation_steps=2", "--lr_scheduler_type=cosine", "--warmup_steps=2"),
    ),
    "by steps, first-order, best round": (*STEPS, *SELDOM, "--trainer=regular", "--load_best_round_at_end", *SOME),
}
# what a case is swept for, see `killable_runs.Sweep`
REMOVALS = ("os.rmdir", "os.unlink", "shutil.rmtree")
SWEPT = {
    "by steps, sequential": [
        {"phase": "resume", "first": "shutil.rmtree"},
        # a checkpoint that is half written is removed
        {"phase": "resume", "first": "torch.save", "names": REMOVALS},
    ],
    "by epochs, sequential": [
        {"phase": "merge", "first": "torch.save", "once": True},
        {"phase": "checkpoint", "first": "torch.save", "once": True},
    ],
}
# before each of these a run was killed at least once in that sweep
WINDOWS = {
    ("checkpoint", "torch.save"): {
        "checkpoint.save_file",
        "ledger.save_file",
        "os.fsync",
        "os.replace",
        "os.rmdir",
        "os.unlink",
        "shutil.rmtree",
        "torch.save",
    },
    ("merge", "torch.save"): {"AdapterSet.start", "Booster._write", "Tape.record_merge"},
    ("resume", "shutil.rmtree"): {
        "AdapterSet.start",
        "Booster._write",
        "Booster.replay",
        "Tape.go_on_from",
        "os.fsync",
        "os.replace",
    },
    ("resume", "torch.save"): set(REMOVALS),
}


@pytest.fixture(scope="module")
def chains(tmp_path_factory, tiny_flags) -> dict[str, list[dict]]:
    """For each case its chains of attempts, see `killable_runs.Chain`: the first is the run that was left alone."""
    folder = tmp_path_factory.mktemp("kills")
    plan, report = folder / "plan.json", folder / "report.json"
    cases = {
        name: {
            "flags": [*tiny_flags, *COMMON, *flags],
            "folder": str(folder / f"case{number}"),
            "random_kills": RANDOM_KILLS,
            "swept": SWEPT.get(name, []),
            "seed": number,
        }
        for number, (name, flags) in enumerate(CASES.items())
    }
    plan.write_text(json.dumps(cases), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("killable_runs.py"), plan, report],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(report.read_text(encoding="utf-8"))


def of_kind(chains: list[dict], kind: str) -> list[dict]:
    return [chain for chain in chains if chain["kind"] == kind]


def kills(chains: list[dict]) -> list[dict]:
    """The attempts that were killed."""
    return [attempt for chain in chains for attempt in chain["attempts"][:-1]]


def windows(chains: list[dict]) -> Counter:
    return Counter(attempt["window"] for attempt in kills(chains))


def assert_same_results(ours: Path, theirs: Path) -> None:
    for name in ("step_loss.csv", "training_loss.jsonl", "merges.jsonl"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert evaluations(ours) == evaluations(theirs)
    assert ledger_header(ours) == ledger_header(theirs)
    for name in ("boosters.safetensors", "model/model.safetensors"):
        tensors, expected = load_file(ours / name), load_file(theirs / name)
        assert tensors.keys() == expected.keys()
        for key, tensor in expected.items():
            assert tensors[key].dtype == tensor.dtype
            assert torch.equal(tensors[key], tensor), f"{name}: {key}"
    assert (ours / "tape.bin").exists() == (theirs / "tape.bin").exists()
    if (theirs / "tape.bin").exists():
        assert (ours / "tape.bin").read_bytes() == (theirs / "tape.bin").read_bytes()


def evaluations(folder: Path) -> list[dict]:
    timing = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time"}
    lines = (folder / "eval_loss.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in timing} for line in lines]


def ledger_header(folder: Path) -> dict:
    with safe_open(folder / "boosters.safetensors", "pt") as file:
        return json.loads(file.metadata()["xgblora"])


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments_it_is_the_same_run(chains, case):
    whole, *_ = chains[case]
    random = of_kind(chains[case], "random")
    print(case, "killed in:", dict(windows(random)))
    assert len(kills(random)) == RANDOM_KILLS
    for chain in random:
        assert [attempt["status"] for attempt in chain["attempts"]] == [-9] * (len(chain["attempts"]) - 1) + [0]
        assert_same_results(Path(chain["folder"]), Path(whole["folder"]))


@pytest.mark.parametrize(
    "case, phase, first", [(case, sweep["phase"], sweep["first"]) for case in SWEPT for sweep in SWEPT[case]]
)
def test_killed_before_every_write_it_is_the_same_run(chains, case, phase, first):
    """The n-th attempt is killed before the n-th write, rename, sync or removal of the phase, until there are none."""
    whole, *_ = chains[case]
    (sweep,) = of_kind(chains[case], f"{phase} after {first}")
    landed = windows([sweep])
    print(f"{case}, {phase}: {len(kills([sweep]))} kills:", dict(landed))
    assert sweep["attempts"][-1]["status"] == 0
    assert {window.removeprefix(f"{phase}: ") for window in landed} >= WINDOWS[phase, first]
    assert_same_results(Path(sweep["folder"]), Path(whole["folder"]))


def test_random_moments_are_everywhere(chains):
    phases = Counter()
    for case in CASES:
        for window, count in windows(of_kind(chains[case], "random")).items():
            phases[window.split(":")[0]] += count
    print("killed in:", dict(phases))
    # which ones is chance; those that are short are swept
    assert len(phases) >= 3


def test_nothing_half_written_is_left(chains):
    for chain in (chain for case in CASES for chain in chains[case]):
        assert [path.name for path in Path(chain["folder"]).iterdir() if path.name.startswith(".")] == []
