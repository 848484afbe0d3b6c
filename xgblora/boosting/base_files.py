"""What a base model's folder holds beside its weights: only weights are trained, so a result takes the rest as is."""

import contextlib
import fnmatch
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from transformers import AutoTokenizer, PretrainedConfig
from transformers.utils import cached_file

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
_WEIGHTS = (
    "*.safetensors",
    "*model*.bin",
    "*.index.json",
    *("*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.npz"),
    *("*.gguf", "*.ggml", "*.onnx", "*.onnx_data", "*.tflite", "*.mlmodel"),
)
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER = (
    *("tokenizer*", "tokenization_*.py", "special_tokens_map.json", "added_tokens.json", "*.jinja", "chat_template*"),
    *("vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json"),
)
# of a configuration: what decides nothing that the model computes, or is what a run sets for itself
_NO_FUNCTION = {
    *("dtype", "torch_dtype", "transformers_version", "architectures", "_name_or_path", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
}
_DTYPE_ENTRY = re.compile(r'("(?:torch_)?dtype"\s*:\s*)"[^"]*"')


def base_folder(name: str | None, revision: str | None = None) -> Path | None:
    """The folder of a base model on this machine; None where it is not here. Nothing is downloaded.

    Args:
        name: a folder, or a hub name: then it is the snapshot in the hub's cache.
        revision: commit of the hub.
    """
    if not name:
        return None
    try:
        file = cached_file(name, CONFIG, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        return None
    return Path(file).parent if file else None


def copy_files(base: Path, to: Path, *, result: Path, wanted: Callable[[Path], bool] = lambda path: True) -> int:
    """Copy the files of `base` to `to` byte for byte, those in subfolders too, and no weights in any format; how many.

    Args:
        base: the base model's folder.
        to: a folder that is there.
        result: the place that `to` will have; the subfolder of `base` in which it lies, if any, is left out.
        wanted: whether a file, by its path in `base`, is to be copied.
    """
    paths = [path for path in _files(base, result) if wanted(path)]
    for path in paths:
        (to / path.parent).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / path, to / path)
    return len(paths)


def describes(base: Path, model) -> bool:
    """Whether the configuration in `base` is the one of `model`, aside from what changes nothing that it computes."""
    try:
        # the class of the model at hand: no code of the folder is run
        config = type(model.config).from_pretrained(base)
    except (OSError, ValueError, TypeError):
        return False
    of_this_class = not config.architectures or type(model).__name__ in config.architectures
    return of_this_class and _function(config) == _function(model.config)


def copy_tokenizer(base: Path, to: Path, *, result: Path) -> None:
    """Copy the files of the tokenizer in `base`, if there is one, as `copy_files` does.

    Where they do not name its class, which then follows from the model's configuration, transformers writes them: the
    configuration does not come along.
    """
    if not copy_files(base, to, result=result, wanted=_is_of_tokenizer):
        return
    settings = base / _TOKENIZER_CONFIG
    if settings.is_file() and "tokenizer_class" in json.loads(settings.read_text(encoding="utf-8")):
        return
    with contextlib.suppress(Exception):  # code of its own, or half a tokenizer: the files are all that there is
        AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False).save_pretrained(to)


def set_dtype(folder: Path, dtype: str) -> None:
    """Have the configuration in `folder` say `dtype`, and change nothing else of it.

    One that says no dtype stays as it is: what reads it then looks at the weights.
    """
    file = folder / CONFIG
    text = file.read_bytes().decode("utf-8")
    config = json.loads(text)
    if {config.get("dtype"), config.get("torch_dtype")} - {None, dtype}:
        file.write_bytes(_DTYPE_ENTRY.sub(rf'\1"{dtype}"', text).encode("utf-8"))


def same_tokens(base: Path, tokenizer) -> bool:
    """Whether the tokenizer in `base` has the tokens of `tokenizer`."""
    try:
        theirs = type(tokenizer).from_pretrained(base)
    except Exception:  # a folder without one fails in many ways
        return False
    return theirs.get_vocab() == tokenizer.get_vocab()


def _files(base: Path, result: Path) -> Iterator[Path]:
    """The files in `base` that are no weights, relative to it."""
    apart = None
    if result.resolve().is_relative_to(base.resolve()):
        apart = next(iter(result.resolve().relative_to(base.resolve()).parts), None)
    for folder, folders, names in os.walk(base):
        at_the_top = Path(folder) == base
        # hidden ones are of git and of download tools
        folders[:] = [name for name in folders if not name.startswith(".") and not (at_the_top and name == apart)]
        for name in sorted(names):
            if not _matches(Path(name), _WEIGHTS):
                yield (Path(folder) / name).relative_to(base)


def _is_of_tokenizer(path: Path) -> bool:
    return path.parent.name in ("", "additional_chat_templates") and _matches(path, _TOKENIZER)


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)


def _function(config: PretrainedConfig) -> object:
    """What of a configuration decides what the model computes."""
    return _without(json.loads(config.to_json_string(use_diff=False)))


def _without(entry: object) -> object:
    if not isinstance(entry, dict):
        return entry
    return {key: _without(value) for key, value in entry.items() if key not in _NO_FUNCTION}
