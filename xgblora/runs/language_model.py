"""Loading the model and the tokenizer of a run."""

from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from xgblora.errors import InputError
from xgblora.scoring.masked import auto_class_for
from xgblora.spelling import one_line


def load_model(name: str, *, dtype: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model and tokenizer `name` (a folder or a hub name), the model on `device` in eval mode.

    It is causal, or masked where it was saved as that.

    Args:
        dtype: "float32", "bfloat16", "float16", or "auto", see `resolve_dtype`.

    Raises:
        InputError: there is no such model, or it cannot be read.
    """
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = auto_class_for(name).from_pretrained(name, dtype=resolve_dtype(dtype, device))
    except Exception as error:  # a folder or hub can be wrong in dozens of ways; the person needs one line
        raise InputError(f"model_name={name}: cannot be loaded ({one_line(error, limit=300)})") from None
    if tokenizer.pad_token_id is None:
        # padding is masked out of attention and loss, so any id will do
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return model.to(device).eval(), tokenizer


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch dtype that `dtype` stands for on `device`.

    "auto" is bfloat16 where there are matrix units for it: a GPU that has them, a CPU with AMX (7 times the rate of
    fp32 there). Elsewhere it is float32, whose losses have less noise: AVX-512's bf16 instructions would double the
    rate (a 768 x 3,072 layer on one core of an AMD EPYC: 2.3 times).
    """
    if dtype != "auto":
        return getattr(torch, dtype)
    has_units = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_bf16_matrix_units()
    return torch.bfloat16 if has_units else torch.float32


def has_bf16_matrix_units() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AMX) and torch knows it."""
    # not public yet
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and supported()


def longest_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    """The longest text in tokens that model, tokenizer and the flag `max_length` allow."""
    limits = [getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length, max_length]
    if max_length is not None and max_length < 2:
        raise InputError(f"max_length={max_length}: must be 2 or more")
    return min(limit for limit in limits if limit is not None)


def refuse_missing_folder(name: str) -> None:
    """Raise InputError if `name` is the path of a folder that is not there or holds no model; hub names pass."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"model_name={name}: there is no config.json in this folder")
        return
    looks_like_a_path = name.startswith((".", "/", "~", "\\")) or name.count("/") > 1 or path.exists()
    if looks_like_a_path:
        raise InputError(f"model_name={name}: there is no such folder")
