"""The part of a checkpoint that is not transformers': the arena and the ledger, never the base weights."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME

from xgblora.adapters import AdapterSet
from xgblora.atomic_file import replacing
from xgblora.boosting import Booster, Ledger
from xgblora.errors import InputError

ADAPTERS = "adapters.safetensors"
LEDGER = "boosters.safetensors"


def save(folder: Path, adapters: AdapterSet, booster: Booster | None, run: dict) -> None:
    """Write the adapters in training, and the ledger if the run boosts.

    Args:
        run: what else must be the same in a run that goes on from here; JSON values.
    """
    identity = json.dumps({**run, **_identity(adapters)})
    with replacing(folder / ADAPTERS) as temporary:
        save_file({"master": adapters.arena.master}, temporary, metadata={"xgblora": identity})
    if booster is not None:
        booster.ledger.save(folder / LEDGER)


def load(folder: Path, adapters: AdapterSet, booster: Booster | None, run: dict) -> None:
    """Set the model to the state that `save` wrote: base + ledger, then the adapters in training.

    Raises:
        InputError: the folder is no checkpoint of such a run.
    """
    master = check(folder, adapters, run)
    if booster is not None:
        booster.replay(Ledger.load(folder / LEDGER))
    adapters.arena.master.copy_(master)
    adapters.arena.restore()


def check(folder: Path, adapters: AdapterSet, run: dict) -> Tensor:
    """The adapters in `folder`, after comparing whose they are.

    Raises:
        InputError: the folder is no checkpoint of such a run.
    """
    path = folder / ADAPTERS
    missing = [file.name for file in (path, folder / TRAINER_STATE_NAME) if not file.is_file()]
    if missing:
        raise InputError(f"resume_from_checkpoint={folder}: is no whole checkpoint, there is no {missing[0]} in it")
    try:
        with safe_open(path, "pt", device=str(adapters.arena.master.device)) as file:
            identity = json.loads((file.metadata() or {}).get("xgblora", "{}"))
            master = file.get_tensor("master")
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"resume_from_checkpoint={folder}: {path.name} cannot be read ({error})") from None
    for name, ours in {**run, **_identity(adapters)}.items():
        if identity.get(name) != ours:
            raise InputError(
                f"resume_from_checkpoint={folder}: {name} is {identity.get(name)} there and {ours} in this run"
            )
    return master


def _identity(adapters: AdapterSet) -> dict:
    return {
        "alpha": adapters.alpha,
        "rank": adapters.rank,
        "seed": adapters.seed,
        "layers": list(adapters.layers),
        "parameters": adapters.arena.master.numel(),
    }
