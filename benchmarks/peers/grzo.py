"""GRZO's step: full parameters, a direction for each example of the batch in the same two forwards."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GrzoStep:
    """GRZO's step (Tan et al., 2026, arXiv:2606.02857) over the weights of a model.

    Example i of B sees each weight moved by eps D_i. Of a linear layer D_i = U * (r_i s_i^T), with one Gaussian U for
    all and signs r_i, s_i of its own; a forward hook adds eps r_i * (U (s_i * x_i)) to the layer's output, a second
    product as large as the layer's own. With the losses l_i at +eps and -eps, d_i = (l_i+ - l_i-) / 2 and
    a_i = d_i / (std(d) + 1e-8), the update is -lr / (2 eps B) sum_i a_i D_i. U is made anew from a seed for each
    forward and for the update, as in the paper. No weight is perturbed, so none has to be restored.

    Which weights, and how, is as in the authors' code (LiyanTan111/GRZO-public, `grzo_flipout_step`, "two_norm", one
    GPU): linear layers, the vocabulary's too; norms (D_i a vector of signs); the rows of token embeddings that the
    batch reads (signs u_t of token t, times a sign of the pair i, t). A weight that two layers share is perturbed in
    each and moved for the first of them.

    Otherwise than there, biases stay (theirs moves those of norms, which no forward perturbed), so do positional
    embeddings (their hook reads the attention mask as tokens), signs are drawn (theirs, for norms and embeddings, are
    one bit of a hash), and a token that an example has twice counts once.

    Args:
        model: with `nn.Linear`, `nn.LayerNorm` and `nn.Embedding`.
        losses: `(batch) -> [B]`, by a forward whose every layer has the B examples first.
    """

    def __init__(self, model: nn.Module, losses: Callable[[dict], Tensor], *, eps: float, lr: float):
        self.losses, self.eps, self.lr = losses, eps, lr
        self.layers = [(module, KINDS[type(module)]) for module in model.modules() if type(module) in KINDS]

    @torch.no_grad()
    def __call__(self, batch: dict, seed: int) -> Tensor:
        """One step; returns a [B], what each example's direction is weighted with."""
        examples = len(batch["label"])
        directions = self.directions(examples, seed)
        plus, minus = self.losses_along(directions, batch, self.eps), self.losses_along(directions, batch, -self.eps)
        halves = (plus - minus) / 2
        advantages = halves / (halves.std() + 1e-8)
        moved = set()
        for of_layer in directions:
            weight = of_layer.layer.weight
            if weight not in moved:
                of_layer.move_(advantages * (-self.lr / (2 * self.eps * examples)))
                moved.add(weight)
        return advantages

    def directions(self, examples: int, seed: int) -> list["Directions"]:
        """The directions of a step, of each layer."""
        seeds = random.Random(seed)
        return [kind(layer, examples, seeds.getrandbits(62)) for layer, kind in self.layers]

    def losses_along(self, directions: list["Directions"], batch: dict, size: float) -> Tensor:
        """The losses [B], each with the weights moved by `size` along its example's direction."""
        hooks = [of_layer.layer.register_forward_hook(_adding(of_layer, size)) for of_layer in directions]
        try:
            return self.losses(batch)
        finally:
            for hook in hooks:
                hook.remove()


class Directions:
    """The directions of a layer's weight, one an example.

    Args:
        layer: the layer.
        examples: B.
        seed: of all that is drawn.
    """

    def __init__(self, layer: nn.Module, examples: int, seed: int):
        self.layer, self.examples, self.seed = layer, examples, seed
        self.generator = torch.Generator(layer.weight.device).manual_seed(seed)

    def added(self, inputs: Tensor) -> Tensor:
        """What they add to the layer's output [B, ..., N] for `inputs` [B, ..., K]."""
        raise NotImplementedError

    def move_(self, weights: Tensor) -> None:
        """Add the sum of all directions to the layer's weight, that of example i times `weights[i]`."""
        raise NotImplementedError

    def signs(self, *shape: int) -> Tensor:
        """-1 and 1 in the dtype of the weight."""
        weight = self.layer.weight
        bits = torch.randint(0, 2, shape, generator=self.generator, device=weight.device, dtype=torch.int8)
        return (2 * bits - 1).to(weight.dtype)


class LinearDirections(Directions):
    """U * (r_i s_i^T), of a linear layer's weight [N, K]."""

    def __init__(self, layer: nn.Linear, examples: int, seed: int):
        super().__init__(layer, examples, seed)
        self.left, self.right = (self.signs(examples, features) for features in layer.weight.shape)

    def base(self) -> Tensor:
        """U [N, K]: never kept."""
        weight = self.layer.weight
        generator = torch.Generator(weight.device).manual_seed(self.seed + 1)
        return torch.randn(weight.shape, generator=generator, device=weight.device, dtype=weight.dtype)

    def added(self, inputs: Tensor) -> Tensor:
        rows = inputs.view(self.examples, -1, inputs.shape[-1])
        product = F.linear(rows * self.right.unsqueeze(1), self.base()).mul_(self.left.unsqueeze(1))
        return product.view(*inputs.shape[:-1], -1)

    def move_(self, weights: Tensor) -> None:
        response = (self.left * weights.unsqueeze(1)).T @ self.right.to(weights.dtype)
        self.layer.weight.add_(response.mul_(self.base()))


class NormDirections(Directions):
    """Signs, of a norm's weight [K]."""

    def __init__(self, layer: nn.LayerNorm, examples: int, seed: int):
        super().__init__(layer, examples, seed)
        self.vectors = self.signs(examples, *layer.weight.shape)

    def added(self, inputs: Tensor) -> Tensor:
        normed = F.layer_norm(inputs, self.layer.normalized_shape, eps=self.layer.eps)
        rows = normed.view(self.examples, -1, inputs.shape[-1])
        return (rows * self.vectors.unsqueeze(1)).view_as(inputs)

    def move_(self, weights: Tensor) -> None:
        self.layer.weight.add_(weights @ self.vectors.to(weights.dtype))


class EmbeddingDirections(Directions):
    """Signs u_t times a sign of example and token, for the rows of an embedding's weight [V, K] that are read."""

    tokens: Tensor | None = None

    def added(self, inputs: Tensor) -> Tensor:
        if self.tokens is None:
            self._draw(inputs)
        of_pairs = self.of_pairs.gather(1, self.places).unsqueeze(2)
        return self.rows[self.places] * of_pairs

    def move_(self, weights: Tensor) -> None:
        moves = (weights @ self.of_pairs.to(weights.dtype)).unsqueeze(1) * self.rows
        self.layer.weight.index_add_(0, self.tokens, moves.to(self.layer.weight.dtype))

    def _draw(self, ids: Tensor) -> None:
        """`tokens` [T] that are there, `places` [B, L] of `ids` among them, `rows` [T, K] and `of_pairs` [B, T]."""
        self.tokens, self.places = ids.unique(return_inverse=True)
        self.rows = self.signs(len(self.tokens), self.layer.weight.shape[1])
        signs = self.signs(self.examples, len(self.tokens))
        self.of_pairs = torch.zeros_like(signs).scatter_(1, self.places, signs.gather(1, self.places))


KINDS = {nn.Linear: LinearDirections, nn.LayerNorm: NormDirections, nn.Embedding: EmbeddingDirections}


def _adding(directions: Directions, size: float) -> Callable:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.add(directions.added(inputs[0]), alpha=size)

    return hook
