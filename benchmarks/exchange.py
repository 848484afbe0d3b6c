"""What the exchange of losses costs a step: `torchrun --nproc-per-node 2 -m benchmarks.exchange`, a core a process.

Each process has half of the batch of 16 x 48 tokens. By turns the first takes a step while the others wait, all take a
step of their own at the same time, and all take one together. Together over the first is what a step of two costs over
one of one, with what they take of each other's memory bandwidth; over the second it is the exchange and the waiting.
"""

import argparse
import time

import numpy as np
import torch
import torch.distributed as dist

import xgblora
from benchmarks.by_turns import ratios, seconds_by_turns
from benchmarks.models import EXAMPLES, random_model
from xgblora.objectives.texts import model_loss
from xgblora.process_group import ProcessGroup, join, leave_together
from xgblora.zo.exchange import Alone, Exchange, ShareOfExamples

GATHERS = 200


def main() -> None:
    """Print the medians, in the first process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="opt-125m")
    parser.add_argument("--rounds", type=int, default=9)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    join()
    group = ProcessGroup(dist.get_rank(), dist.get_world_size(), "cpu", timeout=600.0)
    model = random_model(flags.shape, torch.device("cpu"), torch.float32)
    ids = torch.randint(4, 10_000, (EXAMPLES // group.processes, 48), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    adapters = xgblora.attach(model, alpha=1.0, seed=0)
    zo = xgblora.ZeroOrder(adapters, model_loss, pairing="sequential")
    together = ShareOfExamples(group.gather)
    ways = {
        "one process": lambda: step(zo, Alone() if group.first else None, batch),
        "each alone": lambda: step(zo, Alone(), batch),
        "together": lambda: step(zo, together, batch),
    }
    for way in ways.values():
        way()
    sent = group.bytes_sent
    taken = seconds_by_turns(ways, flags.rounds)
    sent = (group.bytes_sent - sent) // flags.rounds
    gathers = [seconds_of(lambda: group.gather(torch.zeros(2))) for _ in range(GATHERS)]
    if group.first:
        medians = {name: f"{1e3 * float(np.median(seconds)):.1f} ms" for name, seconds in taken.items()}
        over = ratios(taken, "together")
        print(f"{flags.shape}, {group.processes} processes: {medians}")
        print(f"together / one process {over['one process']:.3f}, together / each alone {over['each alone']:.3f}")
        print(f"a gather {1e6 * float(np.median(gathers)):.0f} us; a step sends {sent} bytes to each other process")
    # one that ends earlier takes the connections of the others with it
    leave_together(0)


def step(zo: xgblora.ZeroOrder, exchange: Exchange | None, batch: dict) -> float:
    """The seconds of a step with this exchange, None of no step; all processes begin and end it at the same time."""
    zo.exchange = exchange
    dist.barrier()
    seconds = seconds_of(lambda: zo.step(batch)) if exchange else 0.0
    dist.barrier()
    return seconds


def seconds_of(work) -> float:
    """How long `work()` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
