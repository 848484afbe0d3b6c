"""`Origin`: which base model, adapted how, a ledger, a tape or a checkpoint was made from."""

import json
from dataclasses import asdict, dataclass

from xgblora.adapters.identity import fingerprint, layout_hash
from xgblora.adapters.trainable import Trainable
from xgblora.errors import InputError
from xgblora.spelling import dtype_name

# what must be the same for a file to fit a model, and how a message calls it
_MUST_MATCH = {
    "layers": "the adapted layers are",
    "rank": "the rank is",
    "alpha": "alpha is",
    "seed": "the seed is",
    "dtype": "the dtype of the weights is",
    "layout": "the layout of the adapters is",
    "fingerprint": "the fingerprint of the base weights is",
}


@dataclass(frozen=True)
class Origin:
    """What base + boosters needs to be the same weights again.

    Attributes:
        model: folder or hub name, None if the model does not say.
        revision: commit of the hub, if it came from there.
        dtype: of the adapted weights: "float32", "bfloat16", ...
        fingerprint: sha256 of the adapted layers before the first merge.
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

    @classmethod
    def of(cls, adapters: Trainable) -> "Origin":
        """The origin of everything that is made from `adapters`; to be asked before the first merge."""
        config = getattr(adapters.model, "config", None)
        return cls(
            model=getattr(config, "_name_or_path", None) or None,
            revision=getattr(config, "_commit_hash", None),
            dtype=dtype_name(adapters.compute_dtype),
            fingerprint=fingerprint(adapters),
            layout=layout_hash(adapters.arena.slots),
            layers=tuple(adapters.layers),
            alpha=float(adapters.alpha),
            rank=adapters.rank,
            seed=adapters.seed,
        )

    @property
    def full_parameters(self) -> bool:
        """Whether the model's own parameters are trained (`FullParameters`), and no adapters."""
        return self.rank == 0

    @classmethod
    def from_json(cls, entry: dict) -> "Origin":
        """The origin that `to_json` wrote."""
        return cls(**{**entry, "layers": tuple(entry["layers"])})

    def to_json(self) -> dict:
        """JSON values."""
        return json.loads(json.dumps(asdict(self)))

    def refuse_other(self, theirs: "Origin", what: str) -> None:
        """Raise InputError, in one line that begins with `what`, unless `theirs` fits the model that this one is of.

        Name and revision may differ: a model may have been moved, and the fingerprint says whether it is the same.
        """
        for name, title in _MUST_MATCH.items():
            other, ours = getattr(theirs, name), getattr(self, name)
            if other != ours:
                raise InputError(f"{what}: {title} {_shown(other)} there and {_shown(ours)} here")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"{', '.join(value[:2])}{', ...' if len(value) > 2 else ''} ({len(value)})"
    return value[:12] if isinstance(value, str) else str(value)
