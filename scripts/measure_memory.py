"""Measure what one step needs by four ways, at the same batch: the memory figure of the README.

    python scripts/measure_memory.py [--shape opt-125m] [--dtype float32] [--ways inference ...] [--output FILE]

runs inference, a zeroth-order step, and steps of AdamW on rank-1 adapters and on all parameters, on random weights of a
published shape (16 texts of 48 tokens), and writes `benchmarks/results/memory.csv`. Counted are the weights and
the most bytes of other tensors that are alive at once (`xgblora.runs.tensor_bytes`): the same on every machine. The
way `all_linear` is a zeroth-order step with adapters on all linear layers; `merges_bytes` are of their remainders.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import xgblora
from benchmarks.models import EXAMPLES, SHAPES, random_batch, random_model
from xgblora.adapters.memory import memory_of
from xgblora.atomic_file import replacing
from xgblora.objectives.texts import CandidateObjective, classification
from xgblora.runs.tensor_bytes import TensorBytes

LENGTH = 48
# the second one finds the state that the first one made
STEPS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="opt-125m", help="shape of the model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of the weights")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=FOR_README, help="what is measured")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "memory.csv")
    arguments = parser.parse_args()
    rows = [measure(arguments.shape, way, arguments.dtype) for way in arguments.ways]
    with replacing(arguments.output) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"{row['way']:16}{row['weights_bytes'] / 2**20:10.1f} MiB + {row['peak_bytes'] / 2**20:.1f} MiB")


def measure(shape: str, way: str, dtype: str = "float32") -> dict[str, str | int]:
    """A row of the file: the bytes of the weights, the most of all other tensors at once, and those of remainders."""
    model = random_model(shape, torch.device("cpu"), getattr(torch, dtype))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    batch = random_batch(model, LENGTH)
    with TensorBytes() as live:
        adapters = WAYS[way](model, batch)
    return {
        "shape": shape,
        "dtype": dtype,
        "batch": f"{EXAMPLES} x {LENGTH} tokens",
        "way": way,
        "weights_bytes": weights,
        "peak_bytes": live.peak,
        "merges_bytes": memory_of(adapters).remainders if adapters is not None else 0,
    }


def inference(model: nn.Module, batch: dict) -> None:
    with torch.no_grad():
        CandidateObjective(model, classification)(model, batch)


def zeroth_order(
    model: nn.Module, batch: dict, targets: str | tuple[str, ...] = ("q_proj", "v_proj")
) -> xgblora.AdapterSet:
    adapters = xgblora.attach(model, targets, alpha=16.0, seed=0)
    zo = xgblora.ZeroOrder(adapters, CandidateObjective(model, classification))
    for _ in range(STEPS):
        zo.step(batch)
    return adapters


def adapters_adamw(model: nn.Module, batch: dict) -> None:
    adapters = xgblora.attach(model, alpha=16.0, seed=0)
    _adamw([tensor for layer in adapters.layers.values() for tensor in (layer.a, layer.b)], model, batch)


def full_adamw(model: nn.Module, batch: dict) -> None:
    _adamw(model.parameters(), model, batch)


def _adamw(parameters: Iterable[torch.Tensor], model: nn.Module, batch: dict) -> None:
    objective, optimizer = CandidateObjective(model, classification), torch.optim.AdamW(parameters, lr=1e-6)
    for _ in range(STEPS):
        objective(model, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


WAYS: dict[str, Callable[[nn.Module, dict], xgblora.AdapterSet | None]] = {
    "inference": inference,
    "zeroth_order": zeroth_order,
    "lora_adamw": adapters_adamw,
    "full_adamw": full_adamw,
    "all_linear": partial(zeroth_order, targets="all-linear"),
}
FOR_README = ("inference", "zeroth_order", "lora_adamw", "full_adamw")

if __name__ == "__main__":
    main()
