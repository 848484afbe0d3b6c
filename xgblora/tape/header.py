"""The header of a tape: what holds for the whole run, in plain numbers and names.

It has two parts, since two rooms act on them and neither knows the other: one of the step (`xgblora.zo`), one of the
rounds (`xgblora.boosting`). In the file their entries stand side by side.
"""

from dataclasses import asdict, dataclass, fields

from xgblora.adapters import Origin

_OPTIMIZER = ("optimizer", "beta1", "beta2", "epsilon")


@dataclass(frozen=True)
class StepHeader:
    """How a step moves the adapters.

    Attributes:
        directions: q, projected gradients a step.
        distribution: of the directions.
        weight_decay: of the updates.
        optimizer, beta1, beta2, epsilon: the optimizer and its numbers, see `xgblora.zo.UpdateRule`.
    """

    directions: int
    distribution: str
    weight_decay: float
    optimizer: str
    beta1: float
    beta2: float
    epsilon: float


@dataclass(frozen=True)
class RoundsHeader:
    """How rounds end and start.

    Attributes:
        rounding: of the merges.
        reinit, colsample: how rounds start, see `xgblora.boosting.RoundStart`.
    """

    rounding: str
    reinit: str = "kaiming"
    colsample: float = 1.0


@dataclass(frozen=True)
class TapeHeader:
    """What holds for the whole run.

    Attributes:
        origin: the base model and how it was adapted.
        step: how a step moves the adapters.
        rounds: how rounds end and start.
    """

    origin: Origin
    step: StepHeader
    rounds: RoundsHeader

    @classmethod
    def from_json(cls, entry: dict) -> "TapeHeader":
        """The header that `to_json` made `entry` of.

        Raises:
            KeyError, TypeError: an entry is missing, or unknown.
        """
        rest = dict(entry)
        origin = Origin.from_json(rest.pop("origin"))
        rounds = RoundsHeader(**{field.name: rest.pop(field.name) for field in fields(RoundsHeader)})
        return cls(origin, StepHeader(**rest.pop("rule"), **rest), rounds)

    def to_json(self) -> dict:
        """JSON values; their order is part of the format."""
        step, rounds = asdict(self.step), asdict(self.rounds)
        rule = {name: step.pop(name) for name in _OPTIMIZER}
        return {
            "origin": self.origin.to_json(),
            **step,
            "rounding": rounds.pop("rounding"),
            "rule": rule,
            **rounds,
        }
