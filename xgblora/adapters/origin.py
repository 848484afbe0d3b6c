"""`Origin`: which base model, adapted how, a ledger, a tape or a checkpoint was made from."""

import json
from dataclasses import asdict, dataclass, fields

from xgblora.errors import InputError

# what must be the same for a file to fit a model, and how a message calls it
_MUST_MATCH = {
    "layers": "the adapted layers are",
    "rank": "the rank is",
    "alpha": "alpha is",
    "seed": "the seed is",
    "dtype": "the dtype of the weights is",
    "layout": "the layout of the adapters is",
    "fingerprint": "the fingerprint of the base weights is",
    "rest": "the fingerprint of the base's other weights is",
}


@dataclass(frozen=True)
class Origin:
    """What base + boosters needs to be the same weights again.

    Attributes:
        model: folder or hub name, None if the model does not say.
        revision: commit of the hub, if it came from there.
        dtype: of the adapted weights: "float32", "bfloat16", ...
        fingerprint: sha256 of the adapted layers before the first merge.
        rest: sha256 of all other weights; None in files that were written before this was kept.
        architecture: the class of the model, which says how the base is loaded; None in older files.
        labels: of a classification head on it, drawn from `seed` unless the base has one; None without.
        layout: sha256 of the arena's slots.
        layers: names of the adapted layers, in model order.
        alpha, rank, seed: of the adapters; rank 0 where there are none and the model's own parameters are trained.
    """

    model: str | None
    revision: str | None
    dtype: str
    fingerprint: str
    layout: str
    layers: tuple[str, ...]
    alpha: float
    rank: int
    seed: int
    rest: str | None = None
    architecture: str | None = None
    labels: tuple[str, ...] | None = None

    @property
    def full_parameters(self) -> bool:
        """Whether the model's own parameters are trained (`FullParameters`), and no adapters."""
        return self.rank == 0

    @classmethod
    def from_json(cls, entry: dict) -> "Origin":
        """The origin that `to_json` wrote."""
        lists = {name: tuple(value) for name, value in entry.items() if isinstance(value, list)}
        return cls(**{**entry, **lists})

    def to_json(self) -> dict:
        """JSON values; what a file need not have is left out where it is not known."""
        entry = json.loads(json.dumps(asdict(self)))
        optional = {field.name for field in fields(self) if field.default is None}
        return {name: value for name, value in entry.items() if value is not None or name not in optional}

    def refuse_other(self, theirs: "Origin", what: str) -> None:
        """Raise InputError, in one line that begins with `what`, unless `theirs` fits the model that this one is of.

        Name and revision may differ: a model may have been moved, and the fingerprint says whether it is the same.
        """
        for name, title in _MUST_MATCH.items():
            other, ours = getattr(theirs, name), getattr(self, name)
            if name == "rest" and None in (other, ours):
                continue
            if other != ours:
                raise InputError(f"{what}: {title} {_shown(other)} there and {_shown(ours)} here")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"{', '.join(value[:2])}{', ...' if len(value) > 2 else ''} ({len(value)})"
    return value[:12] if isinstance(value, str) else str(value)
