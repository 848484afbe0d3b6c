"""`residual`: `a` fits the residuals of the model to what the layer reads, by least squares.

That is what gradient boosting does (Friedman 2001): a weak learner is fitted to the pseudo-residuals, minus the
gradient of the loss with respect to what the model gives. Here they are taken where the output embeddings read, one
step of the chain rule from the scores: no backward through the model. The gradient of a layer is a sum over positions
of the residual, brought back to the layer, times what the layer read; so `a` should tell from the inputs where the
residual is large, and of which sign. How it comes back, `b`, is for the steps of the round to find.
"""

import logging
from collections import defaultdict

import torch
from torch import Tensor

from xgblora.adapters import AdapterSet
from xgblora.boosting.starts.forwards import forwards
from xgblora.boosting.starts.measured_a import adapter_of, some_of, thinned
from xgblora.boosting.starts.strategy import Measured, Samples

logger = logging.getLogger("xgblora")

# of the mean squared length of the inputs: without it 96 texts would be fitted exactly
RIDGE = 0.3
# residuals lie in few directions, as many as there are answers to choose from
COMPONENTS = 16
# a fit costs the cube of this; where all tokens of a text are predicted there are more
MOST_POSITIONS = 256
# of the best direction: of two answers to choose from there is one, and what stands beside it is rounding
LEAST_SHARE = 1e-4


def residual(adapters: AdapterSet, samples: Samples, round: int) -> Tensor:
    """`a` the ridge regression of the residuals on the layer's inputs, `b` zero; fp32 [P].

    Residuals are vectors; the direction of theirs is taken that the layer's inputs tell best, for rank r the best r.
    Where there are fewer, the rest of `a` is fresh.

    Raises:
        InputError: the model has no output embeddings, or the objective no gradient at them or several forwards.
    """
    pulls: list[Tensor] = []
    at_pulls: dict[str, list[Tensor]] = defaultdict(list)
    inputs: dict[str, list[Tensor]] = defaultdict(list)
    for forward in forwards(adapters, samples, round, pulls=True):
        size = forward.pull.abs().amax(dim=1)
        where = (size > 0) & size.isfinite()
        pulls.append(forward.pull[where].double().cpu())
        for read in forward.reads:
            # inputs of other positions than those of the text (an encoder's, an expert's) have no residual
            if len(read.x) == len(where):
                x, some = read.x[where].double().cpu(), some_of(read.x, forward.there)
                for name in read.layers:
                    at_pulls[name].append(x)
                    inputs[name].append(some)
    directions = _fits(at_pulls, thinned(torch.cat(pulls), MOST_POSITIONS), adapters.rank, round, len(pulls))
    return adapter_of(adapters, round, directions, {name: torch.cat(inputs[name]) for name in directions})


RESIDUAL = Measured(residual, trains_a=False, needs_gradient=True)


def _fits(at_pulls: dict[str, list[Tensor]], pulls: Tensor, rank: int, round: int, batches: int) -> dict[str, Tensor]:
    """fp64 [rank, K] for each layer that read in all batches; layers that read one input share the fit.

    Of fewer rows where residuals lie in fewer directions, and none where there are no residuals.
    """
    if not len(pulls):
        logger.warning("XGBLoRA: Round %d finds no residuals that it could start at; it starts fresh", round + 1)
        return {}
    targets = _principal(pulls)
    fits: dict[tuple[int, ...], tuple[Tensor, float]] = {}
    directions = {}
    for name, of_batches in at_pulls.items():
        if len(of_batches) == batches:
            which = tuple(map(id, of_batches))
            if which not in fits:
                fits[which] = _fit(thinned(torch.cat(of_batches), MOST_POSITIONS), targets, rank)
            directions[name] = fits[which][0]
    shares = [share for _, share in fits.values()]
    if shares:
        logger.info(
            "XGBLoRA: Round %d starts at the residuals of %d positions; the layers' inputs tell %.0f to %.0f%% of them",
            round + 1,
            len(targets),
            100 * min(shares),
            100 * max(shares),
        )
    return directions


def _fit(x: Tensor, targets: Tensor, rank: int) -> tuple[Tensor, float]:
    """The best `rank` directions [rank, K] of a ridge regression of `targets` [n, C] on `x` [n, K].

    Also what share of the targets the regression explains. In its dual form, since n is smaller than K.
    """
    products = x @ x.T
    # inputs that are all zero tell nothing
    ridge = RIDGE * products.diagonal().mean() or 1.0
    weights = torch.linalg.solve(products + ridge * torch.eye(len(x), dtype=x.dtype), targets)
    explained = targets.T @ products @ weights
    sizes, components = torch.linalg.eigh(explained + explained.T)
    best = components[:, sizes > LEAST_SHARE * sizes[-1]].flip(1)[:, :rank]
    share = float(explained.trace() / targets.square().sum())
    return (weights @ best).T @ x, share


def _principal(pulls: Tensor) -> Tensor:
    """`pulls` [n, D] by their principal components, [n, C]."""
    components = min(COMPONENTS, *pulls.shape)
    left, sizes, _ = torch.linalg.svd(pulls, full_matrices=False)
    return left[:, :components] * sizes[:components]
