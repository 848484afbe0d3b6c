"""The ledger: every booster of a run. Base weights + ledger = the trained weights, bit for bit."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xgblora.adapters import Slot
from xgblora.adapters.arena import arena_size
from xgblora.atomic_file import replacing
from xgblora.errors import InputError

FORMAT = "xgblora-ledger-1"


@dataclass(frozen=True)
class MergedAdapter:
    """One booster: the adapter that a round trained, and where it was merged.

    Attributes:
        round: 1 for the first.
        step, epoch: how far training was.
        adapters: fp32 [P] on the host, laid out as the arena was.
        held_out_loss: if it was measured.
    """

    round: int
    step: int
    epoch: float
    adapters: Tensor
    held_out_loss: float | None = None


@dataclass
class Ledger:
    """The boosters of a run, in the order in which they were merged.

    Attributes:
        slots: the arena's layout.
        scale: alpha / rank, the same for every booster.
        rounding: how they were merged.
        seed: the seed of the run's adapters (stochastic rounding draws from it).
        boosters: the list.
    """

    slots: tuple[Slot, ...]
    scale: float
    rounding: str
    seed: int
    boosters: list[MergedAdapter] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.boosters)

    def save(self, path: str | Path, *, about: dict | None = None) -> None:
        """Write the ledger as safetensors, atomically: `<layer>.a` fp32 [T, K] and `<layer>.b` fp32 [T, N].

        Args:
            path: the file.
            about: more to say in the header (model, versions); JSON values.
        """
        rows = (
            torch.stack([booster.adapters for booster in self.boosters])
            if self.boosters
            else torch.zeros(0, arena_size(self.slots), dtype=torch.float32)
        )
        tensors = {}
        for slot in self.slots:
            a, b = slot.views(rows)
            tensors[f"{slot.name}.a"], tensors[f"{slot.name}.b"] = a[:, 0].contiguous(), b[:, 0].contiguous()
        header = {
            "format": FORMAT,
            "scale": self.scale,
            "rounding": self.rounding,
            "seed": self.seed,
            "slots": [asdict(slot) for slot in self.slots],
            "boosters": [{k: v for k, v in vars(booster).items() if k != "adapters"} for booster in self.boosters],
            "about": about or {},
        }
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"xgblora": json.dumps(header)})

    @classmethod
    def load(cls, path: str | Path) -> "Ledger":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, torn, or not a ledger.
        """
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {}).get("xgblora", "{}"))
                if not isinstance(header, dict) or header.get("format") != FORMAT:
                    raise InputError(f"{path}: not a ledger of format {FORMAT}")
                slots = tuple(Slot(**slot) for slot in header["slots"])
                rows = torch.zeros(len(header["boosters"]), arena_size(slots), dtype=torch.float32)
                for slot in slots:
                    for name, part in zip("ab", slot.views(rows), strict=True):
                        # not an assignment: one row would be broadcast to all
                        part.copy_(file.get_tensor(f"{slot.name}.{name}").view(part.shape))
            entries = zip(header["boosters"], rows, strict=True)
            boosters = [MergedAdapter(**entry, adapters=row) for entry, row in entries]
            return cls(slots, header["scale"], header["rounding"], header["seed"], boosters)
        except (OSError, SafetensorError, KeyError, IndexError, TypeError, RuntimeError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: not a readable ledger ({type(error).__name__}: {error})") from None
