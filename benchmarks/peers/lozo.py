"""LOZO's step: full parameters, along directions of low rank."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

# apart from the seeds of U, whose numbers V must not have; of a seed torch takes 32 bits on a CPU
_SEED_OF_V = 1 << 31


class LozoStep:
    """LOZO's step (Chen et al., 2024, arXiv:2410.07698, algorithm 1) over all parameters of a model.

    A matrix is perturbed by eps U V^T, U [rows, r] drawn anew for each step and V [columns, r] kept for nu steps; a
    vector by eps z. As in MeZO's step the perturbations are in place, +eps, -2 eps, +eps, and U and z are made anew
    from a seed each time; the signs run one after the other. The update of a matrix is divided by r, as in the paper.

    Kinder to it than its authors' code (optsuite/LOZO), which makes U V^T and of it a new parameter: here the product
    adds to the parameter itself. And V has a seed of its own; there it is drawn between the U of the perturbations,
    and the update finds other U in such a step (optsuite/LOZO#3).

    Args:
        parameters: what is trained, matrices and vectors.
        loss: `(batch) -> scalar`, for the parameters as they are.
        rank: r; the authors' code has 2.
        interval: nu, steps that share V; the authors' code has 50.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        loss: Callable[[dict], Tensor],
        *,
        eps: float,
        lr: float,
        rank: int = 2,
        interval: int = 50,
    ):
        self.parameters, self.loss, self.eps, self.lr = parameters, loss, eps, lr
        self.rank, self.interval = rank, interval
        self.steps = 0
        self.right: list[Tensor | None] = []

    @torch.no_grad()
    def __call__(self, batch: dict, seed: int) -> float:
        """One step; returns the projected gradient."""
        if self.steps % self.interval == 0:
            self._draw_right(seed + _SEED_OF_V)
        self.steps += 1
        self._add(seed, self.eps, self.eps)
        plus = self.loss(batch)
        self._add(seed, -2 * self.eps, -2 * self.eps)
        minus = self.loss(batch)
        self._add(seed, self.eps, self.eps)
        projected = ((plus - minus) / (2 * self.eps)).item()
        self._add(seed, -self.lr * projected / self.rank, -self.lr * projected)
        return projected

    def _draw_right(self, seed: int) -> None:
        """V of each matrix; None for a vector."""
        torch.manual_seed(seed)
        self.right = [
            _gaussian(parameter, parameter.size(1), self.rank) if parameter.ndim == 2 else None
            for parameter in self.parameters
        ]

    def _add(self, seed: int, to_matrices: float, to_vectors: float) -> None:
        torch.manual_seed(seed)
        for parameter, right in zip(self.parameters, self.right, strict=True):
            if right is None:
                parameter.data.add_(_gaussian(parameter, *parameter.shape), alpha=to_vectors)
            else:
                left = _gaussian(parameter, parameter.size(0), self.rank)
                parameter.data.addmm_(left, right.T, alpha=to_matrices)


def _gaussian(like: Tensor, *shape: int) -> Tensor:
    return torch.randn(shape, device=like.device, dtype=like.dtype)
