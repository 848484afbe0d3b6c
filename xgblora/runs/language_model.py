"""Loading the model and the tokenizer of a run."""

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file, find_adapter_config_file

from xgblora.adapters.dispatched import devices_of
from xgblora.errors import InputError
from xgblora.hub_downloads import reason, refuse_damaged
from xgblora.runs.head import draw_head
from xgblora.scoring.forms import saved_form
from xgblora.scoring.position_limit import position_limit
from xgblora.scoring.vocabulary import padding_id, rows_of_embeddings

logger = logging.getLogger("xgblora")


def load_model(
    name: str,
    *,
    dtype: str,
    device: torch.device,
    device_map: str = "none",
    trust_remote_code: bool = False,
    revision: str | None = None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model and tokenizer `name` (a folder or a hub name), the model on `device` in eval mode.

    It is of the kind as which it was saved, see `xgblora.scoring.forms`. This is how every base is loaded: to train, to
    export and to replay.

    Args:
        dtype: "float32", "bfloat16", "float16", or "auto": of a quantised model the dtype that it was saved in, of
            others see `resolve_dtype`.
        device_map: "none", or how accelerate spreads the model over all devices.
        trust_remote_code: whether code that comes with the model may run; if so, the log says it.
        revision: commit of the hub, or a branch; without it the newest of the main one. Which commit it was stands
            in the model's configuration, as `_commit_hash`.
        labels: of a classification head, which is then on the model: that of the checkpoint, or one that is drawn.
        seed: draws the head.

    Raises:
        InputError: there is no such model, it cannot be read, it is an adapter beside a model, its weights are not in
            safetensors, or some of them are missing or of another shape.
    """
    if trust_remote_code:
        logger.warning("trust_remote_code: code that comes with %s may run on this machine", name)
    begun = time.time()
    try:
        with _quiet():
            # all files of one commit
            commit = _commit_of(name, revision)
            settings = {"trust_remote_code": trust_remote_code, "revision": commit}
            _refuse_adapter(name, find_adapter_config_file(name, revision=commit))
            tokenizer = AutoTokenizer.from_pretrained(name, **settings)
            model, found = _loaded(name, _dtype_to_load(name, dtype, device, settings), labels, settings, device_map)
    except InputError:
        raise
    except Exception as error:  # a folder or hub can be wrong in dozens of ways; the person needs one line
        refuse_damaged("model", name, f"model_name={name}", begun)
        _refuse_pickles(name)
        if "custom code" in str(error):
            raise InputError(
                f"model_name={name}: comes with code of its own, which may do anything on this machine; read it, and "
                "give --trust_remote_code if you trust it"
            ) from None
        raise InputError(f"model_name={name}: cannot be loaded ({reason(error)})") from None
    refuse_damaged("model", name, f"model_name={name}", begun)
    if labels is not None:
        _prepare_head(model, tokenizer, found, seed)
    _refuse_other_weights(name, found)
    # newer releases of transformers do not keep it
    model.config._commit_hash = commit
    tokenizer.padding_side = "left"
    return (model if len(devices_of(model)) > 1 else model.to(device)).eval(), tokenizer


def _dtype_to_load(name: str, dtype: str, device: torch.device, settings: dict) -> torch.dtype:
    """As `resolve_dtype`, but what quantisation left of a model keeps its dtype, and "auto" must be the same."""
    if dtype == "auto":
        config = AutoConfig.from_pretrained(name, **settings)
        if getattr(config, "quantization_config", None) is not None and isinstance(config.dtype, torch.dtype):
            return config.dtype
    return resolve_dtype(dtype, device)


def _loaded(name: str, dtype: torch.dtype, labels: Sequence[str] | None, settings: dict, device_map: str) -> tuple:
    """The model as what it was saved as, or with a head, and what transformers found in its checkpoint."""
    form = saved_form(name, head=labels is not None, **settings)
    return form.auto_class.from_pretrained(
        name,
        dtype=dtype,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **({} if labels is None else {"id2label": dict(enumerate(labels))}),
        **settings,
        **({} if device_map == "none" else {"device_map": device_map}),
    )


def _prepare_head(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, found: dict, seed: int) -> None:
    """Draw what a head lacks, and take it out of what was `found` to be lacking; give the model a token that pads."""
    lacking = {kind: set(found[kind]) for kind in ("missing_keys", "mismatched_keys")}
    named = {key if isinstance(key, str) else key[0] for keys in lacking.values() for key in keys}
    drawn = draw_head(model, seed, named)
    for kind, keys in lacking.items():
        found[kind] = {key for key in keys if (key if isinstance(key, str) else key[0]) not in drawn}
    text = model.config.get_text_config()
    if text.pad_token_id is None:
        # a head on a decoder reads the last token before the padding, and knows that by its id
        text.pad_token_id = padding_id(tokenizer, rows_of_embeddings(model))


def _commit_of(name: str, revision: str | None) -> str | None:
    """The commit of the hub that `revision` of the model is at; None for a folder."""
    if Path(name).is_dir():
        return None
    config = cached_file(name, "config.json", revision=revision)
    return Path(config).parent.name if config else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and its tables of weights, which `_refuse_other_weights` says in one line."""
    logging_of_transformers = transformers.utils.logging
    logging_of_transformers.disable_progress_bar()
    level = logging_of_transformers.get_verbosity()
    logging_of_transformers.set_verbosity_error()
    try:
        yield
    finally:
        logging_of_transformers.set_verbosity(level)


def _refuse_adapter(name: str, config: str | None) -> None:
    """Raise InputError if a PEFT adapter lies beside the model: PEFT would load and save it, and it alone."""
    if config is not None:
        raise InputError(
            f"model_name={name}: holds a PEFT adapter (adapter_config.json); merge it into its base first: "
            f"PeftModel.from_pretrained(base, {name!r}).merge_and_unload().save_pretrained(ANOTHER_FOLDER)"
        )


def _refuse_pickles(name: str) -> None:
    """Raise InputError if the weights in the folder `name` are pickles alone, which can run code when they are read."""
    folder = Path(name)
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise InputError(
            f"model_name={name}: its weights are in .bin files, which can run code; convert them where you trust them: "
            f"AutoModelForCausalLM.from_pretrained({name!r}, use_safetensors=False).save_pretrained(ANOTHER_FOLDER)"
        )


def _refuse_other_weights(name: str, found: dict) -> None:
    """Raise InputError if the model has weights that its files lack; tensors of the files that it lacks are logged."""
    for what, keys in (("lacks", found["missing_keys"]), ("has another shape of", found["mismatched_keys"])):
        if keys:
            first = min(key if isinstance(key, str) else key[0] for key in keys)
            raise InputError(
                f"model_name={name}: the checkpoint {what} {first}{_and_more(keys)}, which would be random numbers"
            )
    if found["unexpected_keys"]:
        keys = found["unexpected_keys"]
        logger.warning("%s: its checkpoint has %s%s, which the model does not use", name, min(keys), _and_more(keys))


def _and_more(keys: Collection) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""


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
    if max_length is not None and max_length < 2:
        raise InputError(f"max_length={max_length}: must be 2 or more")
    limits = (position_limit(model), tokenizer.model_max_length, max_length)
    return min(limit for limit in limits if limit is not None)


def refuse_missing_model(name: str | None) -> None:
    """Raise InputError unless a run names its model, and it is not known to be missing, see `refuse_missing_folder`."""
    if name is None:
        raise InputError("model_name is missing: give a model folder or a hub name")
    refuse_missing_folder(name)


def refuse_missing_folder(name: str) -> None:
    """Raise InputError if `name` is the path of a folder that is not there or holds no whole model; hub names pass."""
    path = Path(name)
    if path.is_dir():
        config = path / "adapter_config.json"
        _refuse_adapter(name, str(config) if config.is_file() else None)
        if not (path / "config.json").is_file():
            raise InputError(f"model_name={name}: there is no config.json in this folder")
        return
    looks_like_a_path = name.startswith((".", "/", "~", "\\")) or name.count("/") > 1 or path.exists()
    if looks_like_a_path:
        raise InputError(f"model_name={name}: there is no such folder")
