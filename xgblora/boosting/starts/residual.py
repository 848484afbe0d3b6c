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
from xgblora.boosting.starts.measured_a import MOST_POSITIONS, adapter_of, by_layer, some_of
from xgblora.boosting.starts.strategy import Measured, Samples
from xgblora.boosting.starts.thinned import Thinned

logger = logging.getLogger("xgblora")

# of the mean squared length of the inputs: without it 96 texts would be fitted exactly
RIDGE = 0.3
# residuals lie in few directions, as many as there are answers to choose from
COMPONENTS = 16
# A fit costs the cube of this; where all tokens of a text are predicted there are more. On the host lie as many rows of
# each input, and as many again that its length is judged by: of a model of 7 billion parameters in 16 bits 0.8 GB.
MOST_PULLS = 256
# of the best direction: of two answers to choose from there is one, and what stands beside it is rounding
LEAST_SHARE = 1e-4


def residual(adapters: AdapterSet, samples: Samples, round: int) -> Tensor:
    """`a` the ridge regression of the residuals on the layer's inputs, `b` zero; fp32 [P].

    Layers that read one input share the fit. Residuals are vectors; the direction of theirs is taken that the layer's
    inputs tell best, for rank r the best r. Where there are fewer, the rest of `a` is fresh.

    Raises:
        InputError: the model has no output embeddings, or the objective no gradient at them or several forwards.
    """
    pulls = Thinned(MOST_PULLS)
    at_pulls: dict[tuple[str, ...], Thinned] = defaultdict(lambda: Thinned(MOST_PULLS))
    inputs: dict[tuple[str, ...], Thinned] = defaultdict(lambda: Thinned(MOST_POSITIONS))
    for forward in forwards(adapters, samples, round, pulls=True):
        size = forward.pull.abs().amax(dim=1)
        where = (size > 0) & size.isfinite()
        pulls.add(forward.pull[where])
        for read in forward.reads:
            # inputs of other positions than those of the text (an encoder's, an expert's) have no residual
            if len(read.x) == len(where):
                at_pulls[read.layers].add(read.x[where.to(read.x.device)])
                inputs[read.layers].add(some_of(read.x, forward.there))
    # what was not read in every forward has no fit
    read = {layers: held.rows for layers, held in at_pulls.items() if held.seen == pulls.seen}
    directions = _fits(read, pulls.rows, adapters.rank, round)
    return adapter_of(
        adapters, round, by_layer(directions), by_layer({layers: inputs[layers].rows for layers in directions})
    )


RESIDUAL = Measured(residual, trains_a=False, needs_gradient=True)


def _fits(
    at_pulls: dict[tuple[str, ...], Tensor], pulls: Tensor, rank: int, round: int
) -> dict[tuple[str, ...], Tensor]:
    """fp64 [rank, K] for the readers of each input.

    Of fewer rows where residuals lie in fewer directions, and none where there are no residuals.
    """
    if not len(pulls):
        logger.warning("XGBLoRA: Round %d finds no residuals that it could start at; it starts fresh", round + 1)
        return {}
    targets = _principal(pulls.double())
    fits = {layers: _fit(x.double(), targets, rank) for layers, x in at_pulls.items()}
    shares = [share for _, share in fits.values()]
    if shares:
        logger.info(
            "XGBLoRA: Round %d starts at the residuals of %d positions; the layers' inputs tell %.0f to %.0f%% of them",
            round + 1,
            len(targets),
            100 * min(shares),
            100 * max(shares),
        )
    return {layers: direction for layers, (direction, _) in fits.items()}


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
