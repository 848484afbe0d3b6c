"""How far rounds moved the weights, and in which direction from one another.

A round changes a layer by `scale * outer(b, a)`, and where it did not start at zero by that less its start. Such terms
are never multiplied out: the inner product of two, as matrices over all layers, is the sum over layers of
`scale * scale' * (b.b') * (a.a')`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from xgblora.adapters import Slot
from xgblora.boosting.ledger import Ledger, Term


@dataclass
class Path:
    """The rounds so far, as steps in the space of all adapted weights.

    Attributes:
        slots: the arena's layout.
        rounds: how many.
        terms: of all of them.
        square: squared Frobenius norm of their sum.
    """

    slots: Sequence[Slot]
    rounds: int = 0
    terms: list[Term] = field(default_factory=list)
    square: float = 0.0

    def add(self, update: Sequence[Term]) -> tuple[float, float | None]:
        """Go the step of a round; its length, and its cosine to the sum of the steps before it.

        The cosine is None for the first round, and where one of the two is nothing.
        """
        along, own = self._inner(update, self.terms), self._inner(update, update)
        lengths = math.sqrt(max(0.0, own)) * math.sqrt(max(0.0, self.square))
        self.rounds += 1
        self.terms += update
        self.square += 2.0 * along + own
        return math.sqrt(max(0.0, own)), along / lengths if lengths else None

    def _inner(self, one: Sequence[Term], other: Sequence[Term]) -> float:
        return sum(inner_product(first, second, self.slots) for first in one for second in other)


def update_of(ledger: Ledger, index: int) -> list[Term]:
    """What the round after `index` boosters changed in the weights: its booster, less its start."""
    booster, start = ledger.boosters[index], ledger.start_offset(index)
    return [Term(booster.round, booster.adapters, booster.scale), *([start] if start is not None else [])]


def inner_product(one: Term, other: Term, slots: Sequence[Slot]) -> float:
    """Of two terms as matrices, over all layers (Frobenius)."""
    total = 0.0
    for slot in slots:
        a, b = (part[0].double() for part in slot.views(one.adapters.unsqueeze(0)))
        other_a, other_b = (part[0].double() for part in slot.views(other.adapters.unsqueeze(0)))
        total += float(((b @ other_b.T) * (a @ other_a.T)).sum())
    return one.scale * other.scale * total
