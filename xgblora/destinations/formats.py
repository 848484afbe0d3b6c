"""The formats in which all boosters together are one adapter file: a new one is an entry here and its writer's file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xgblora.boosting.peft_adapter import CONFIG, export_peft
from xgblora.boosting.truncation import TruncationCost
from xgblora.destinations.gguf_adapter import FILE, export_gguf
from xgblora.destinations.mlx_adapter import WEIGHTS, export_mlx


@dataclass(frozen=True)
class AdapterFormat:
    """A format of adapters.

    Attributes:
        marker: a file that a folder of this format has.
        write: `(ledger, folder, *, base_model, rank)`, as `export_peft`.
        load_it: how what was written is loaded, given the folder, the name of the base and the call that loads it.
    """

    marker: str
    write: Callable[..., TruncationCost | None]
    load_it: Callable[[Path, str, str], str]


def _load_peft(folder: Path, base: str, loaded: str) -> str:
    return f'model = PeftModel.from_pretrained({loaded}, "{folder}")'


def _load_gguf(folder: Path, base: str, loaded: str) -> str:
    return f"llama-cli -m BASE.gguf --lora {folder / FILE} (BASE.gguf: convert_hf_to_gguf.py {base})"


def _load_mlx(folder: Path, base: str, loaded: str) -> str:
    return f"mlx_lm.generate --model {base} --adapter-path {folder}"


FORMATS = {
    "peft": AdapterFormat(CONFIG, export_peft, _load_peft),
    "gguf": AdapterFormat(FILE, export_gguf, _load_gguf),
    "mlx": AdapterFormat(WEIGHTS, export_mlx, _load_mlx),
}
