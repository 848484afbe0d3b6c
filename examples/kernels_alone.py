"""The operations alone, without a model of transformers and without a trainer.

    python examples/kernels_alone.py

CUDA tensors run Triton kernels and a CUDA extension, CPU tensors a C++ extension or the eager reference, with the same
bits where `xgblora-env --check` says so.
"""

import torch

from xgblora import ops

EPS, RATE = 1e-3, 1e-2


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    weight = torch.randn(32, 64, device=device)
    # two groups of rows, each with an adapter of its own: one forward for both signs
    x, a, b = (torch.randn(*shape, device=device) for shape in ((2, 5, 64), (2, 64), (2, 32)))
    y = ops.rank1_linear(x, weight, None, a, b, 0.5)
    by_hand = x @ weight.T + 0.5 * torch.einsum("grk,gk,gn->grn", x, a, b)
    print(f"rank1_linear: {tuple(y.shape)}, differs from the formula by {(y - by_hand).abs().max():.0e} at most")

    master, live = torch.zeros(1000, device=device), torch.empty(2, 1000, device=device)
    signs = torch.tensor([1.0, -1.0], device=device)
    ops.perturb(master, live, 3, EPS, signs)
    deviation = live[0].std() / EPS
    print(f"perturb: both sides are opposite: {torch.equal(live[0], -live[1])}, deviation {deviation:.2f} eps")

    seeds, slope = torch.tensor([3], device=device), torch.tensor([2.0], device=device)
    ops.update_(master, seeds, slope, lr=RATE)
    # the same noise, made anew from its seed
    print(f"update_: the noise is that of perturb: {torch.allclose(master, -RATE * 2.0 * live[0] / EPS, atol=1e-6)}")

    merged = [weight.to(torch.bfloat16)]
    before, remainders = merged[0].clone(), ops.new_remainders(merged)
    small = [(a[0] * 1e-2, b[0] * 1e-2)]
    for _ in range(1000):
        ops.merge_rank1_(merged, small, 1.0, "remainder", remainders=remainders)
    arrived = (merged[0].float() - before.float()).norm() / (1000 * torch.outer(small[0][1], small[0][0])).norm()
    print(f"merge_rank1_: {arrived:.0%} of a thousand small merges arrived in bf16")


if __name__ == "__main__":
    main()
