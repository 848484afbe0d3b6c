"""How the next token is chosen: greedily, or drawn with numbers that a replay makes again.

One number decides a token: where it falls among the cumulated probabilities. It is a function of (seed, prompt,
completion, position) alone, so it does not depend on which rows a batch holds, on a row's place in it, or on what other
rows did before. All members of a population get the same numbers: what differs between their texts comes of their
weights (common random numbers), and the comparison is the sharper for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xgblora.errors import InputError, check_not_negative
from xgblora.kernels.noise_numbers import Stream
from xgblora.ops.noise import philox4x32

_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Sampling:
    """What is written after a prompt.

    Attributes:
        temperature: what logits are divided by; 0 takes the likeliest token.
        top_p: draw among the likeliest tokens that have this share of the probability together (Holtzman et al., 2020);
            1 draws among all.
        completions: texts a prompt and member.
        max_new_tokens: the most tokens of a text.
        stop: a text ends before the first of these strings, beside the tokens that end one.

    Raises:
        InputError: a number is out of range, a stop string is empty, or several greedy texts are asked for.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    completions: int = 1
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        check_not_negative("temperature", self.temperature)
        if not (math.isfinite(self.top_p) and 0 < self.top_p <= 1):
            raise InputError(f"top_p={self.top_p}: must be above 0 and at most 1")
        for name in ("completions", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: must be 1 or more")
        if self.temperature == 0 and self.completions > 1:
            raise InputError(
                f"temperature=0 with completions={self.completions}: greedy texts of one prompt are all the same; "
                "set a temperature above 0, or completions=1"
            )
        if isinstance(self.stop, str) or not all(self.stop):
            raise InputError(f"stop={self.stop!r}: must be a tuple of strings that are not empty")


def uniforms(seed: int, prompts: Sequence[int], completions: int, positions: int, device: torch.device) -> Tensor:
    """Uniform numbers in (0, 1), fp64 [len(prompts), completions, positions].

    Args:
        seed: 64 bits.
        prompts: the numbers of the prompts, 32 bits each.

    The counter of Philox4x32-10 is (position, completion, stream, prompt), the number its first word.
    """
    axes = (torch.tensor(list(prompts)), torch.arange(completions), torch.arange(positions))
    prompt, completion, position = (axis.to(device) & _WORD for axis in torch.meshgrid(*axes, indexing="ij"))
    counter = torch.stack((position, completion, torch.full_like(position, Stream.TOKENS), prompt))
    key = torch.tensor([seed & _WORD, (seed >> 32) & _WORD], device=device)
    words = philox4x32(counter.view(4, -1), key)[0]
    return ((words.to(torch.float64) + 0.5) * 2.0**-32).view(prompt.shape)


def next_tokens(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """The token of each row, int64 [R].

    Args:
        logits: [R, V].
        uniform: fp64 [R], read where the temperature is above 0.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits.float() / sampling.temperature).softmax(dim=-1)
    order = None
    if sampling.top_p < 1:
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
    cumulated = probabilities.cumsum(dim=-1, dtype=torch.float64)
    total = cumulated[:, -1]
    if order is not None:
        # the likeliest ones up to and with the one that reaches the share
        kept = (cumulated < sampling.top_p * total.unsqueeze(1)).sum(dim=1)
        total = cumulated.gather(1, kept.clamp_(max=logits.shape[1] - 1).unsqueeze(1)).squeeze(1)
    place = torch.searchsorted(cumulated, (uniform * total).unsqueeze(1), right=True)
    # a token of probability 0 cannot be drawn, but for rounding at the very end
    place.clamp_(max=logits.shape[1] - 1)
    return (place if order is None else order.gather(1, place)).squeeze(1)
