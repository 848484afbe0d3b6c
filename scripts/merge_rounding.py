"""What each rounding keeps of many small merges into 16-bit weights: the table in docs/precision.md.

    python scripts/merge_rounding.py [--merges 1000]

One 512 x 512 weight of standard deviation 0.02, as a language model's, takes rank-1 merges of random sign; the update
that arrived is compared with the fp64 sum of all merges.
"""

import argparse

import torch

from xgblora import ops
from xgblora.ops.merge_rank1 import ROUNDINGS, round_with_remainder
from xgblora.ops.noise import Stream, derive_seed, normal
from xgblora.spelling import dtype_name

SIZE = 512
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--merges", type=int, default=1000, help="how many merges (default 1000)")
    arguments = parser.parse_args()
    print(
        f"{'weights':10}{'rounding':12}{'update that arrives':>20}{'error / update':>16}{'equal to the fp32 sum':>23}"
    )
    for dtype in (torch.bfloat16, torch.float16):
        for rounding in ROUNDINGS:
            kept, error, exact = measure(dtype, rounding, arguments.merges)
            print(f"{dtype_name(dtype):10}{rounding:12}{kept:>20.1%}{error:>16.1%}{exact:>23.2%}")


def measure(dtype: torch.dtype, rounding: str, merges: int) -> tuple[float, float, float]:
    """How much of the update arrived, the error beside the update, and the share of weights that are right to the bit.

    Right is the fp32 running sum of all merges, rounded once. The first is a projection on the true update: it may be
    1, and the error large all the same.
    """
    base = (normal(1, SIZE * SIZE, device=CPU, stream=Stream.INITIALISATION) * 0.02).view(SIZE, SIZE).to(dtype)
    weights = [base.clone()]
    remainders = ops.new_remainders(weights)
    single, update = base.float(), torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for round in range(merges):
        # updates share a direction, as those of one training run do
        noise = normal(derive_seed(2, round), 2 * SIZE, device=CPU, stream=Stream.INITIALISATION) + 1.0
        a, b = noise[:SIZE] * 2e-3, noise[SIZE:] * 2e-3
        ops.merge_rank1_(weights, [(a, b)], 1.0, rounding, remainders=remainders, seed=derive_seed(3, round))
        ops.merge_rank1_([single], [(a, b)], 1.0, "nearest")
        update += torch.outer(b.double(), a.double())
    arrived = weights[0].double() - base.double()
    kept = ((arrived * update).sum() / update.square().sum()).item()
    error = ((arrived - update).norm() / update.norm()).item()
    rounded_once, _ = round_with_remainder(single, dtype)
    return kept, error, (weights[0] == rounded_once).double().mean().item()


if __name__ == "__main__":
    main()
