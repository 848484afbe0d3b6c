"""The ledger: every booster of a run. Base weights + ledger = the trained weights, bit for bit."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xgblora.adapters import Origin, Slot
from xgblora.adapters.arena import arena_size, lay_out
from xgblora.adapters.identity import layout_hash
from xgblora.adapters.rank1_linear import scale_of
from xgblora.atomic_file import replacing
from xgblora.boosting.merged import Merged, MergedAdapter, is_noise, merged_from, noise_tensors
from xgblora.boosting.starts import RoundStart
from xgblora.boosting.terms import Fade, NoiseTerm, Term
from xgblora.errors import InputError
from xgblora.spelling import one_line

# the second is that of ledgers with boosters of noise, which programs of before cannot read
FORMAT, FORMAT_WITH_NOISE = "xgblora-ledger-3", "xgblora-ledger-4"
_PARTS, _PARTS_OF_STARTS = ("a", "b"), ("start_a", "start_b")
_ZERO_IF_MISSING = "start_b"


@dataclass
class Ledger:
    """The boosters of a run, in the order in which they were merged.

    Attributes:
        origin: the base model and how it was adapted.
        slots: the arena's layout.
        rounding: how they were merged.
        start: how rounds started. Where that is not with `b` zero, the weights are base + `terms`.
        boosters: the list.
        measured: the measured starts, fp32 [P] on the host, by the number of boosters before; of other strategies none.
    """

    origin: Origin
    slots: tuple[Slot, ...]
    rounding: str
    start: RoundStart = RoundStart()
    boosters: list[Merged] = field(default_factory=list)
    measured: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.boosters)

    def add(self, booster: Merged) -> None:
        """Enter the booster that was merged last."""
        self.boosters.append(booster)

    def record_held_out_loss(self, step: int, loss: float) -> None:
        """Enter the held-out loss of the model with the last booster, measured after its merge.

        Nothing is entered where it was not merged at `step`, or has a loss already.
        """
        last = self.boosters[-1] if self.boosters else None
        if last is not None and last.step == step and last.held_out_loss is None:
            self.boosters[-1] = replace(last, held_out_loss=loss)

    @property
    def full_scale(self) -> float:
        """The scale of an adapter in training, `alpha / rank`; that of a booster may be smaller."""
        return scale_of(self.origin.alpha, self.origin.rank)

    def first(self, rounds: int) -> "Ledger":
        """The ledger of the first `rounds` rounds, as it was when the round after them began."""
        measured = {round: start for round, start in self.measured.items() if round <= rounds}
        return replace(self, boosters=self.boosters[:rounds], measured=measured)

    def start_of(self, round: int, device: torch.device | str = "cpu") -> Tensor:
        """The adapter that the round after `round` boosters starts with, fp32 [P]."""
        if round in self.measured:
            return self.measured[round].to(device)
        earlier = self._adapters(self.boosters[:round])
        return self.start.adapter(self.slots, self.origin.seed, round, earlier, device)

    def takes_from_base(self, round: int) -> bool:
        """Whether the base takes the negative of the adapter that the round after `round` boosters starts with."""
        # a round that was never begun has no measured start, and begins with `b` zero
        begun = not self.start.measures or round in self.measured
        return begun and self.start.takes_from_base(round)

    def start_offset(self, round: int, device: torch.device | str = "cpu") -> Term | None:
        """What the base is offset by when the round after `round` boosters starts, so that the model stays as it was.

        It is the start's negative; None where the start is zero.
        """
        if not self.takes_from_base(round):
            return None
        return Term(round + 1, self.start_of(round, device), -self.full_scale)

    def terms(self) -> Iterator[Term | NoiseTerm | Fade]:
        """All that was written into the weights after the last merge, in order."""
        for index, booster in enumerate(self.boosters):
            offset = self.start_offset(index)
            if offset is not None:
                yield offset
            yield from booster.terms()

    def is_trained(self, adapter: Tensor) -> bool:
        """Whether `adapter`, fp32 [P], in training after the last booster, does anything that its start does not."""
        if not any(bool(slot.views(adapter.unsqueeze(0))[1].any()) for slot in self.slots):
            return False
        started_at_zero = not self.takes_from_base(len(self))
        return started_at_zero or not torch.equal(adapter, self.start_of(len(self), adapter.device))

    def rows(self) -> Tensor:
        """The adapters of all boosters that are adapters, fp32 [T, P]."""
        return _stacked(self._adapters(self.boosters), self.slots)

    @staticmethod
    def _adapters(boosters: list[Merged]) -> list[Tensor]:
        return [booster.adapters for booster in boosters if isinstance(booster, MergedAdapter)]

    def save(self, path: str | Path, *, about: dict | None = None) -> None:
        """Write the ledger as safetensors, atomically.

        The tensors are `<layer>.a` fp32 [T, rank, K] and `<layer>.b` fp32 [T, rank, N], likewise `<layer>.start_a` and
        `<layer>.start_b` of the starts that were measured, if any, in bf16 where that is all there is to them, and
        no `start_b` that is zero; of boosters that are noise `noise.seeds` int64 and `noise.coefficients` fp32, one
        booster after the other; the header, JSON under "xgblora", holds the rest and a sha256 of it all.

        Args:
            path: the file.
            about: more to say in the header (versions); JSON values.
        """
        noise = noise_tensors(self.boosters)
        tensors = _by_layer(self.rows(), self.slots, _PARTS) | noise
        header = {
            "format": FORMAT_WITH_NOISE if noise else FORMAT,
            "origin": self.origin.to_json(),
            "rounding": self.rounding,
            "start": asdict(self.start),
            "slots": [asdict(slot) for slot in self.slots],
            "boosters": [booster.entry() for booster in self.boosters],
            "about": about or {},
        }
        if self.measured:
            header["measured"] = list(self.measured)
            starts = _by_layer(_stacked(list(self.measured.values()), self.slots), self.slots, _PARTS_OF_STARTS)
            tensors |= {name: _in_16_bits(part) for name, part in starts.items() if _is_kept(name, part)}
        header["sha256"] = _digest(header, tensors)
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"xgblora": json.dumps(header)})

    @classmethod
    def load(cls, path: str | Path) -> "Ledger":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, torn, changed, or not a ledger.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: there is no such file")
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {}).get("xgblora", "{}"))
                if not isinstance(header, dict) or header.get("format") not in (FORMAT, FORMAT_WITH_NOISE):
                    raise InputError(f"{path}: not a ledger of format {FORMAT} or {FORMAT_WITH_NOISE}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header.pop("sha256", None) != _digest(header, tensors):
                raise InputError(f"{path}: the ledger is damaged or was changed (its sha256 does not fit)")
            return cls._from_parts(header, tensors)
        except (OSError, SafetensorError, KeyError, IndexError, TypeError, RuntimeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: not a readable ledger ({one_line(error, kind=True)})") from None

    @classmethod
    def _from_parts(cls, header: dict, tensors: dict[str, Tensor]) -> "Ledger":
        slots = tuple(Slot(**slot) for slot in header["slots"])
        rounds = header.get("measured", [])
        adapters = sum(not is_noise(entry) for entry in header["boosters"])
        counts = {_PARTS: adapters, **({_PARTS_OF_STARTS: len(rounds)} if rounds else {})}
        _refuse_other_sizes(slots, tensors, counts)
        origin = Origin.from_json(header["origin"])
        if layout_hash(slots) != origin.layout:
            raise ValueError("the layout is not the one that its origin names")
        boosters = merged_from(header["boosters"], _rows_of(tensors, slots, _PARTS, adapters), tensors)
        starts = _rows_of(tensors, slots, _PARTS_OF_STARTS, len(rounds)) if rounds else []
        measured = dict(zip(rounds, starts, strict=True))
        return cls(origin, slots, header["rounding"], RoundStart(**header["start"]), boosters, measured)


def _refuse_other_sizes(
    slots: tuple[Slot, ...], tensors: dict[str, Tensor], counts: dict[tuple[str, str], int]
) -> None:
    """Raise ValueError unless the sizes in a header are those of its tensors: memory is taken by what the header says.

    Args:
        counts: by the names of the parts, how many adapters there are.
    """
    if not slots or slots != lay_out([(slot.name, slot.rank, slot.in_features, slot.out_features) for slot in slots]):
        raise ValueError("its slots are no layout")
    for names, count in counts.items():
        for slot in slots:
            for name, size in zip(names, (slot.in_features, slot.out_features), strict=True):
                key = f"{slot.name}.{name}"
                if key not in tensors and name == _ZERO_IF_MISSING:
                    continue
                if tuple(tensors[key].shape) != (count, slot.rank, size):
                    raise ValueError(f"{key} is of another size than the header says")


def _stacked(adapters: list[Tensor], slots: tuple[Slot, ...]) -> Tensor:
    """Adapters fp32 [P] one below the other."""
    return torch.stack(adapters) if adapters else torch.zeros(0, arena_size(slots), dtype=torch.float32)


def _by_layer(rows: Tensor, slots: tuple[Slot, ...], names: tuple[str, str]) -> dict[str, Tensor]:
    """The tensors of a file for adapters `rows` [T, P]."""
    tensors = {}
    for slot in slots:
        for name, part in zip(names, slot.views(rows), strict=True):
            tensors[f"{slot.name}.{name}"] = part.contiguous()
    return tensors


def _is_kept(key: str, part: Tensor) -> bool:
    return not key.endswith(f".{_ZERO_IF_MISSING}") or bool(part.any())


def _in_16_bits(part: Tensor) -> Tensor:
    """The same numbers in bf16, if it has them."""
    narrow = part.to(torch.bfloat16)
    return narrow if torch.equal(narrow.float(), part) else part


def _rows_of(tensors: dict[str, Tensor], slots: tuple[Slot, ...], names: tuple[str, str], count: int) -> Tensor:
    """What `_by_layer` made the tensors of."""
    rows = torch.zeros(count, arena_size(slots), dtype=torch.float32)
    for slot in slots:
        for name, part in zip(names, slot.views(rows), strict=True):
            key = f"{slot.name}.{name}"
            if key in tensors or name != _ZERO_IF_MISSING:
                # not an assignment: one row would be broadcast to all
                part.copy_(tensors[key].view(part.shape))
    return rows


def _digest(header: dict, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
