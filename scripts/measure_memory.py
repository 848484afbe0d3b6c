"""Measure what one step needs by four ways, at the same batch: the memory figure of the README.

    python scripts/measure_memory.py [--shape opt-125m]

runs inference, a zeroth-order step, and steps of AdamW on rank-1 adapters and on all parameters, on random weights of a
published shape (fp32, 16 texts of 48 tokens), and writes `benchmarks/results/memory.csv`. Counted are the weights and
the most bytes of other tensors that are alive at once (`xgblora.runs.tensor_bytes`): the same on every machine.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import xgblora
from benchmarks.models import EXAMPLES, SHAPES, random_batch, random_model
from xgblora.atomic_file import replacing
from xgblora.objectives.texts import CandidateObjective, classification
from xgblora.runs.tensor_bytes import TensorBytes

LENGTH = 48
# the second one finds the state that the first one made
STEPS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="opt-125m", help="shape of the model")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "memory.csv")
    arguments = parser.parse_args()
    rows = [measure(arguments.shape, way) for way in WAYS]
    with replacing(arguments.output) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"{row['way']:16}{row['weights_bytes'] / 2**20:10.1f} MiB + {row['peak_bytes'] / 2**20:.1f} MiB")


def measure(shape: str, way: str) -> dict[str, str | int]:
    """A row of the file: the bytes of the weights, and the most of all other tensors at once."""
    model = random_model(shape, torch.device("cpu"), torch.float32)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    batch = random_batch(model, LENGTH)
    with TensorBytes() as live:
        WAYS[way](model, batch)
    return {
        "shape": shape,
        "dtype": "float32",
        "batch": f"{EXAMPLES} x {LENGTH} tokens",
        "way": way,
        "weights_bytes": weights,
        "peak_bytes": live.peak,
    }


def inference(model: nn.Module, batch: dict) -> None:
    with torch.no_grad():
        CandidateObjective(model, classification)(model, batch)


def zeroth_order(model: nn.Module, batch: dict) -> None:
    adapters = xgblora.attach(model, alpha=16.0, seed=0)
    zo = xgblora.ZeroOrder(adapters, CandidateObjective(model, classification))
    for _ in range(STEPS):
        zo.step(batch)


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


WAYS: dict[str, Callable[[nn.Module, dict], None]] = {
    "inference": inference,
    "zeroth_order": zeroth_order,
    "lora_adamw": adapters_adamw,
    "full_adamw": full_adamw,
}

if __name__ == "__main__":
    main()
