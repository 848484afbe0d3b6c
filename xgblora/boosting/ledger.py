"""The ledger: every booster of a run. Base weights + ledger = the trained weights, bit for bit."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xgblora.adapters import Origin, Slot
from xgblora.adapters.arena import arena_size
from xgblora.adapters.identity import layout_hash
from xgblora.atomic_file import replacing
from xgblora.errors import InputError

FORMAT = "xgblora-ledger-2"


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


@dataclass
class Ledger:
    """The boosters of a run, in the order in which they were merged.

    Attributes:
        origin: the base model and how it was adapted.
        slots: the arena's layout.
        rounding: how they were merged.
        boosters: the list.
    """

    origin: Origin
    slots: tuple[Slot, ...]
    rounding: str
    boosters: list[MergedAdapter] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.boosters)

    def rows(self) -> Tensor:
        """The adapters of all boosters, fp32 [T, P]."""
        if not self.boosters:
            return torch.zeros(0, arena_size(self.slots), dtype=torch.float32)
        return torch.stack([booster.adapters for booster in self.boosters])

    def save(self, path: str | Path, *, about: dict | None = None) -> None:
        """Write the ledger as safetensors, atomically.

        The tensors are `<layer>.a` fp32 [T, rank, K] and `<layer>.b` fp32 [T, rank, N]; the header, JSON under
        "xgblora", holds the rest and a sha256 of it all.

        Args:
            path: the file.
            about: more to say in the header (versions); JSON values.
        """
        tensors, rows = {}, self.rows()
        for slot in self.slots:
            for name, part in zip("ab", slot.views(rows), strict=True):
                tensors[f"{slot.name}.{name}"] = part.contiguous()
        header = {
            "format": FORMAT,
            "origin": self.origin.to_json(),
            "rounding": self.rounding,
            "slots": [asdict(slot) for slot in self.slots],
            "boosters": [{k: v for k, v in vars(booster).items() if k != "adapters"} for booster in self.boosters],
            "about": about or {},
        }
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
                if not isinstance(header, dict) or header.get("format") != FORMAT:
                    raise InputError(f"{path}: not a ledger of format {FORMAT}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header.pop("sha256", None) != _digest(header, tensors):
                raise InputError(f"{path}: the ledger is damaged or was changed (its sha256 does not fit)")
            return cls._from_parts(header, tensors)
        except (OSError, SafetensorError, KeyError, IndexError, TypeError, RuntimeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = " ".join(str(error).split())
            raise InputError(f"{path}: not a readable ledger ({type(error).__name__}: {reason})") from None

    @classmethod
    def _from_parts(cls, header: dict, tensors: dict[str, Tensor]) -> "Ledger":
        slots = tuple(Slot(**slot) for slot in header["slots"])
        origin = Origin.from_json(header["origin"])
        if layout_hash(slots) != origin.layout:
            raise ValueError("the layout is not the one that its origin names")
        rows = torch.zeros(len(header["boosters"]), arena_size(slots), dtype=torch.float32)
        for slot in slots:
            for name, part in zip("ab", slot.views(rows), strict=True):
                # not an assignment: one row would be broadcast to all
                part.copy_(tensors[f"{slot.name}.{name}"].view(part.shape))
        entries = zip(header["boosters"], rows, strict=True)
        return cls(origin, slots, header["rounding"], [MergedAdapter(**entry, adapters=row) for entry, row in entries])


def _digest(header: dict, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
