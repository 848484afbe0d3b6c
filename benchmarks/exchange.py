"""What the exchange of losses costs a step: `torchrun --nproc-per-node 2 -m benchmarks.exchange`, a core a process.

Each process has half of the batch of 16 x 48 tokens, and takes by turns a step of its own and a step with the others.
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
from xgblora.process_group import ProcessGroup, join
from xgblora.zo.exchange import Alone, ShareOfExamples

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
    exchanges = {"alone": Alone(), "together": ShareOfExamples(group.gather)}
    taken = seconds_by_turns(
        {name: lambda with_=one: step(zo, with_, batch) for name, one in exchanges.items()}, flags.rounds
    )
    gathers = [seconds_of(lambda: group.gather(torch.zeros(2))) for _ in range(GATHERS)]
    if group.first:
        medians = {name: f"{1e3 * float(np.median(seconds)):.0f} ms" for name, seconds in taken.items()}
        ratio = ratios(taken, "together")["alone"]
        print(f"{flags.shape}, {group.processes} processes: {medians}, together / alone {ratio:.3f}")
        print(
            f"a gather {1e6 * float(np.median(gathers)):.0f} us, {group.bytes_sent // (flags.rounds + GATHERS)} bytes"
        )


def step(zo: xgblora.ZeroOrder, exchange: Alone | ShareOfExamples, batch: dict) -> float:
    """The seconds of a step with this exchange; all processes begin it at the same time."""
    zo.exchange = exchange
    dist.barrier()
    return seconds_of(lambda: zo.step(batch))


def seconds_of(work) -> float:
    """How long `work()` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
