"""`Estimator`: what a step's estimate is. Each way to estimate is a file of its own behind it.

A step moves the adapters along q random directions. An estimator says at which places round `master` the losses of a
batch are taken, which of its examples are run at which place, and how the losses become q projected gradients, one a
direction. `ZeroOrder` does the rest: noise, forwards stacked or one after the other, accumulation, update and tape.
"""

from typing import ClassVar, Protocol

from torch import Tensor

from xgblora.errors import InputError
from xgblora.ops.noise import derive_seed


class Estimator(Protocol):
    """A way to estimate.

    The places are the G rows of `live`: row g is `master + signs[g] * eps * z`, with the z of direction
    `noise[g * D // G]`. A batch is run F times; F divides G, and forward f reads the first `groups` of the G / F rows
    from number `f * G / F` on, each for an equal share of the examples.

    Most estimators run the whole batch at every place: G = F, and `groups` is 1. With a direction an example there are
    as many directions as examples in a full batch, `groups` is the number of examples in this one, and the k-th example
    is run at the k-th row of each forward.

    Attributes:
        name: as `metrics.json` has it.
        directions: q, projected gradients a step, whatever the batches are: a tape keeps as many of every step.
        forwards: F, how often a step runs a batch.
        signs: G numbers; 0 is `master` itself.
        noise: D numbers of directions, D divides G; the first q are 0 to q - 1. Noise of a number above belongs to no
            direction.
    """

    name: ClassVar[str]
    directions: int

    @property
    def forwards(self) -> int: ...

    @property
    def signs(self) -> tuple[float, ...]: ...

    @property
    def noise(self) -> tuple[int, ...]: ...

    def groups(self, examples: int | None) -> int:
        """How many rows one forward reads of a batch of so many examples; None where a batch cannot be counted.

        Raises:
            InputError: such a batch cannot be run.
        """

    def projected_grads(self, losses: Tensor, eps: Tensor) -> Tensor:
        """fp32 [G], the mean loss at each row (0 where no example was run), and eps fp32 [1], to fp32 [q].

        It is captured as a part of a CUDA graph: it reads nothing back from the device.
        """


def check_estimator(estimator: Estimator) -> None:
    """Raise InputError, in one line that names the estimator, where it is none or its numbers do not fit together."""
    name = getattr(estimator, "name", type(estimator).__name__)
    parts = ("name", "directions", "forwards", "signs", "noise", "groups", "projected_grads")
    missing = [part for part in parts if not hasattr(estimator, part)]
    if missing or isinstance(estimator, type):
        raise InputError(f"estimator={name}: must be an object with {', '.join(missing or parts)}")
    check_directions(estimator.directions)
    rows, noise, forwards = len(estimator.signs), estimator.noise, estimator.forwards
    if not isinstance(forwards, int) or forwards < 1 or rows % forwards:
        raise InputError(f"estimator={name}: forwards={forwards} must divide its {rows} signs")
    if not noise or rows % len(noise):
        raise InputError(f"estimator={name}: its {len(noise)} numbers of noise must divide its {rows} signs")
    # a tape keeps the first seed of a step, from which those of its directions follow in order
    if tuple(noise[: estimator.directions]) != tuple(range(estimator.directions)):
        raise InputError(f"estimator={name}: noise={tuple(noise)} must begin with 0 to {estimator.directions - 1}")


def direction_seeds(first: int, directions: int) -> list[int]:
    """The seeds of a step's directions: the first of them gives the others, so that a tape keeps one a step."""
    return [first, *(derive_seed(first, direction) for direction in range(1, directions))]


def grouped(numbers: list[int]) -> tuple[int, ...]:
    """`numbers`, one a row, with one for rows of equal number that follow each other, where all such groups are equal.

    So the rows that share a direction share its noise, which is drawn once.
    """
    distinct = tuple(dict.fromkeys(numbers))
    copies = len(numbers) // len(distinct)
    return distinct if [number for number in distinct for _ in range(copies)] == numbers else tuple(numbers)


def check_directions(directions: int) -> None:
    """Raise InputError unless `directions` is a number of directions."""
    if not isinstance(directions, int) or directions < 1:
        raise InputError(f"directions={directions}: must be a whole number, 1 or more")
