"""`OneSided`: a loss on one side of `master` in every direction, and one at `master` itself for all of them.

With `normalise` and Rademacher signs it is FZOO (Dang et al. 2025, arXiv:2506.09034).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xgblora.errors import InputError
from xgblora.zo.estimator import check_directions


@dataclass(frozen=True)
class OneSided:
    """The losses at `master + eps z` less that at `master`, over eps: the projected gradients.

    Attributes:
        directions: q; q + 1 forwards a step.
        normalise: divide the projected gradients by the standard deviation of the q losses; q > 1.

    Raises:
        InputError: `directions` is no number of directions, or there is no deviation to divide by.
    """

    directions: int = 1
    normalise: bool = False
    name: ClassVar[str] = "one_sided"

    def __post_init__(self):
        check_directions(self.directions)
        check_normalise("normalise", self.normalise, two_sided=False, directions=self.directions)

    @property
    def forwards(self) -> int:
        return self.directions + 1

    @property
    def signs(self) -> tuple[float, ...]:
        return (*(1.0,) * self.directions, 0.0)

    @property
    def noise(self) -> tuple[int, ...]:
        # the last row takes none of its noise
        return tuple(range(self.directions + 1))

    def groups(self, examples: int | None) -> int:
        return 1

    def projected_grads(self, losses: Tensor, eps: Tensor) -> Tensor:
        perturbed, base = losses[:-1], losses[-1]
        projected = (perturbed - base) / eps
        if not self.normalise:
            return projected
        spread = perturbed.std()
        # losses that are all the same point nowhere
        return torch.where(spread == 0.0, 0.0, projected / spread)


def check_normalise(name: str, normalise: bool, two_sided: bool, directions: int) -> None:
    """Raise InputError, by the `name` of the flag or argument, if there are not several losses on one side."""
    if normalise and (two_sided or directions < 2):
        raise InputError(f"{name}=True: needs one-sided estimates of 2 or more directions")
