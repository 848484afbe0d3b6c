"""Stage: the zeroth-order step bit for bit: captured as without capture, noise and update as on a CPU, a tape replayed.

Beside them the demonstration, as a person runs it, for 300 steps, and its tape replayed on the CPU by the command.
"""

import copy
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import xgblora
from benchmarks.gpu.stages import Part, Setting
from benchmarks.gpu.train import trained
from benchmarks.models import random_model
from xgblora import ops
from xgblora.ops.self_check import largest_difference
from xgblora.ops.update import RULES
from xgblora.records import step_losses
from xgblora.spelling import dtype_name

CPU = torch.device("cpu")
# what decides how a step runs: stacked or one after the other, the optimizer's state, one side or both
FORMS = {
    "paired, sgd": {"pairing": "paired"},
    "sequential, sgd": {"pairing": "sequential"},
    "paired, adam, 4 directions": {"pairing": "paired", "optimizer": "adam", "directions": 4},
    "one-sided, normalised": {
        **{"pairing": "paired", "directions": 4, "two_sided": False},
        **{"normalise": True, "distribution": "rademacher", "lr": 1e-6},
    },
}


def parts(setting: Setting) -> Iterable[Part]:
    """The small ones first."""
    device = torch.device(setting.device_type)
    sizes = (1_000, 4_099) if setting.tiny else (1_000_003, 10_000_000)
    dtypes = (torch.float32,) if setting.tiny else (torch.bfloat16, torch.float32)
    steps = 4 if setting.tiny else 20
    yield Part("noise", lambda: noise(device, sizes[1]), 2, 40)
    yield Part("update_", lambda: update(device, sizes[0]), 3, 60)
    for form in list(FORMS)[: 1 if setting.tiny else None]:
        yield Part(f"captured: {form}", lambda form=form: captured(device, dtypes, form, steps), 3, 60)
    yield Part("tape replayed on a CPU", lambda: replayed(device, dtypes, steps, setting.folder / "tape.bin"), 3, 60)
    yield Part("demonstration", lambda: demonstration(setting), 8, 90)
    yield Part("demonstration replayed on a CPU", lambda: demonstration_replayed(setting), 4, 60)


def compared(check: str, case: str, ours: Tensor, expected: Tensor) -> dict:
    """A record of two tensors that must have the same bits."""
    ours, expected = ours.detach().to(CPU), expected.detach().to(CPU)
    record = {"check": check, "case": case, "passed": torch.equal(ours, expected)}
    if not record["passed"]:
        record["differ"] = f"{int((ours != expected).sum())} of {ours.numel()}"
        record["largest_error"], record["where"] = largest_difference(ours, expected)
    return record


def noise(device: torch.device, size: int) -> Iterator[dict]:
    """`perturb` of a zero master with eps 1: the noise itself, against the CPU's."""
    for distribution in ("gaussian", "rademacher"):
        found = [_noise(place, size, distribution) for place in (device, CPU)]
        yield compared("noise", f"{distribution} [{size}]", *found)


def _noise(place: torch.device, size: int, distribution: str) -> Tensor:
    master, live = torch.zeros(size, device=place), torch.full((1, size), float("nan"), device=place)
    seed, one = torch.tensor([2**40 + 7], device=place), torch.ones(1, device=place)
    ops.perturb(master, live, seed, one, one, distribution=distribution)
    return live


def update(device: torch.device, size: int) -> Iterator[dict]:
    """Every rule of `update_`, five steps of two directions, against the CPU's."""
    for rule in RULES:
        found = [_updated(place, size, rule) for place in (device, CPU)]
        yield compared("update_", f"{rule} [{size}], 5 steps", *found)


def _updated(place: torch.device, size: int, rule: str) -> Tensor:
    names, factors = RULES[rule]
    master = torch.linspace(-1, 1, size).to(place)
    moments = {name: torch.zeros(size, device=place) for name in names}
    numbers = torch.tensor([0.9, 0.1, 0.999, 0.001, 1e-8, 0.271, 0.003][:factors], device=place) if factors else None
    given = {**moments, **({"factors": numbers} if factors else {})}
    for step in range(5):
        seeds = torch.tensor([step, -step - 1], device=place)
        coefficients = torch.tensor([0.3, -1.7 * step], device=place)
        ops.update_(master, seeds, coefficients, lr=torch.tensor([1e-3], device=place), optimizer=rule, **given)
    return torch.cat([master, *moments.values()])


def captured(device: torch.device, dtypes: Iterable[torch.dtype], form: str, steps: int) -> Iterator[dict]:
    """A run whose steps are CUDA graphs against one whose steps are not: losses, weights, tape."""
    for dtype in dtypes:
        with_graphs, without = (
            trained(device, dtype, steps, capture=capture, **FORMS[form]) for capture in ("auto", "never")
        )
        case = f"{dtype_name(dtype)}, {form}, {steps} steps"
        graphs = with_graphs.zo.graphs
        yield {
            "note": f"{case}: {0 if graphs is None else len(graphs)} graphs; {getattr(graphs, 'reason', None) or ''}"
        }
        if device.type == "cuda":
            # two shapes of batches and the update
            yield {"check": "all is captured", "case": case, "passed": graphs is not None and len(graphs) == 3}
        yield compared("losses, captured and not", case, with_graphs.losses, without.losses)
        yield compared("weights, captured and not", case, with_graphs.values, without.values)
        yield {"check": "tape, captured and not", "case": case, "passed": with_graphs.tape == without.tape}


def replayed(device: torch.device, dtypes: Iterable[torch.dtype], steps: int, file: Path) -> Iterator[dict]:
    """The tape of a run on the device, replayed on the CPU from the same base weights."""
    for dtype in dtypes:
        base = random_model("small", CPU, dtype)
        run = trained(device, dtype, steps, model=copy.deepcopy(base).to(device), end=True, optimizer="adam")
        file.write_bytes(run.tape)
        booster, verified = xgblora.replay(base, xgblora.Tape.load(file))
        case = f"{dtype_name(dtype)}, {steps} steps, {len(booster.ledger)} merges"
        yield {"check": "tape verified on the CPU", "case": case, "passed": verified}
        weights = torch.cat([weight.detach().flatten().float() for weight in booster.adapters.weights()])
        yield compared("merged weights, device and replayed", case, run.weights, weights)


def demonstration(setting: Setting) -> Iterator[dict]:
    """`xgblora-train` as it comes, for 300 steps."""
    steps, folder = (20 if setting.tiny else 300), setting.folder / "demonstration"
    flags = ["--max_steps", steps, "--output_dir", folder, "--disable_tqdm", "true", "--save_strategy", "no"]
    flags += ["--num_eval", 40, "--num_dev", 20] if setting.tiny else []
    _command("train", [*flags, *(["--use_cpu", "true"] if setting.device_type == "cpu" else [])])
    metrics = json.loads((folder / "metrics.json").read_text())
    _, losses = step_losses.read(folder / "step_loss.csv")
    finite = int(np.isfinite(losses).sum())
    yield {"fact": "demonstration", "value": {name: metrics["results"][name] for name in ("zero_shot", "trained")}}
    yield {"check": "losses are finite", "case": f"{finite} of {steps}", "passed": finite == len(losses) == steps}
    tenth = max(1, steps // 10)
    first, last = losses[:tenth].mean(), losses[-tenth:].mean()
    yield {"fact": "demonstration's loss", "value": f"first tenth {first:.4f}, last tenth {last:.4f}"}


def demonstration_replayed(setting: Setting) -> Iterator[dict]:
    """`xgblora-replay` of it, on the CPU."""
    printed = _command("replay", [setting.folder / "demonstration", "--use_cpu", "true", "--save_model", "false"])
    yield {"check": "xgblora-replay verifies", "case": "on the CPU", "passed": "verified:" in printed}


def _command(name: str, arguments: list) -> str:
    """Run a command of the package in a process of its own; what it prints.

    Raises:
        RuntimeError: it failed; what it said is printed.
    """
    program = "import sys; from benchmarks.gpu.faults import hide_missing; hide_missing(); "
    program += f"from xgblora.cli.{name} import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    if done.returncode != 0:
        last = (done.stdout.strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(f"xgblora-{name} ended with {done.returncode} and said last: {last}")
    return done.stdout
