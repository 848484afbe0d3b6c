"""The boosters of a ledger: a kind is a class of one shape, which says what it wrote and how a file keeps it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xgblora.boosting.terms import Fade, NoiseTerm, Term

SEEDS, COEFFICIENTS = "noise.seeds", "noise.coefficients"


@dataclass(frozen=True)
class MergedAdapter:
    """One booster: the adapter that a round trained, and where it was merged.

    Attributes:
        round: 1 for the first.
        step, epoch: how far training was.
        scale: what its `outer(b, a)` was multiplied with.
        adapters: fp32 [P] on the host, laid out as the arena was.
        held_out_loss: of the model with this booster, if it was measured.
        kept_step: the step whose weights the round went back to before the merge; None where it was the merge's own.
    """

    round: int
    step: int
    epoch: float
    scale: float
    adapters: Tensor
    held_out_loss: float | None = None
    kept_step: int | None = None

    def terms(self) -> Iterator[Term]:
        """What its merge wrote."""
        yield Term(self.round, self.adapters, self.scale)

    def entry(self) -> dict:
        """All but its tensors, as JSON values."""
        return {name: value for name, value in vars(self).items() if name != "adapters"}


@dataclass(frozen=True)
class MergedNoise:
    """One booster: a weighted sum of rank-1 noise, 12 bytes a term, as a population's step makes it.

    Attributes:
        round, step, epoch, held_out_loss, kept_step: as of `MergedAdapter`.
        seeds: int64 [T] on the host.
        coefficients: fp32 [T] on the host.
        decay: what all earlier boosters were multiplied with before.
    """

    round: int
    step: int
    epoch: float
    seeds: Tensor
    coefficients: Tensor
    decay: float = 1.0
    held_out_loss: float | None = None
    kept_step: int | None = None

    @property
    def scale(self) -> float:
        """What the sum was multiplied with: the coefficients say it all."""
        return 1.0

    def terms(self) -> Iterator[Fade | NoiseTerm]:
        """What its merge wrote."""
        if self.decay != 1.0:
            yield Fade(self.decay)
        yield NoiseTerm(self.round, self.seeds, self.coefficients)

    def entry(self) -> dict:
        """All but its tensors, as JSON values; "terms" is how many it has."""
        kept = {name: value for name, value in vars(self).items() if name not in ("seeds", "coefficients")}
        return {**kept, "terms": len(self.seeds)}


Merged = MergedAdapter | MergedNoise


def is_noise(entry: dict) -> bool:
    """Whether an entry of a file is that of a `MergedNoise`."""
    return "terms" in entry


def noise_tensors(boosters: list[Merged]) -> dict[str, Tensor]:
    """The tensors that a file keeps of those boosters that are noise, one after the other; none where none is."""
    noise = [booster for booster in boosters if isinstance(booster, MergedNoise)]
    if not noise:
        return {}
    return {
        SEEDS: torch.cat([booster.seeds for booster in noise]),
        COEFFICIENTS: torch.cat([booster.coefficients for booster in noise]),
    }


def merged_from(entries: list[dict], rows: Tensor, tensors: dict[str, Tensor]) -> list[Merged]:
    """The boosters of a file.

    Args:
        entries: as of `entry`.
        rows: fp32 [A, P], those that are adapters.
        tensors: those of the file.

    Raises:
        ValueError: sizes or dtypes are not those that the entries say.
    """
    sizes = [entry["terms"] for entry in entries if is_noise(entry)]
    parts = {}
    for name, dtype in ((SEEDS, torch.int64), (COEFFICIENTS, torch.float32)) if sizes else ():
        if min(sizes) < 0 or tensors[name].shape != (sum(sizes),) or tensors[name].dtype != dtype:
            raise ValueError(f"{name} is of another size than the header says")
        parts[name] = iter(tensors[name].split(sizes))
    adapters, boosters = iter(rows), []
    for entry in entries:
        if is_noise(entry):
            kept = {name: value for name, value in entry.items() if name != "terms"}
            boosters.append(MergedNoise(**kept, seeds=next(parts[SEEDS]), coefficients=next(parts[COEFFICIENTS])))
        else:
            boosters.append(MergedAdapter(**entry, adapters=next(adapters)))
    return boosters
