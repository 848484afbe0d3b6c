"""`TwoSided`: a loss on both sides of `master` in every direction.

Simultaneous perturbation (SPSA, Spall 1992) as MeZO (Malladi et al. 2023) applies it to language models.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from xgblora.zo.estimator import check_directions


@dataclass(frozen=True)
class TwoSided:
    """The losses at `master + eps z` and `master - eps z`: their difference over `2 eps` is the projected gradient.

    Attributes:
        directions: q; 2q forwards a step.

    Raises:
        InputError: it is no number of directions.
    """

    directions: int = 1
    name: ClassVar[str] = "two_sided"

    def __post_init__(self):
        check_directions(self.directions)

    @property
    def forwards(self) -> int:
        return 2 * self.directions

    @property
    def signs(self) -> tuple[float, ...]:
        return (1.0, -1.0) * self.directions

    @property
    def noise(self) -> tuple[int, ...]:
        return tuple(range(self.directions))

    def groups(self, examples: int | None) -> int:
        return 1

    def projected_grads(self, losses: Tensor, eps: Tensor) -> Tensor:
        pairs = losses.view(self.directions, 2)
        return (pairs[:, 0] - pairs[:, 1]) / (2.0 * eps)
