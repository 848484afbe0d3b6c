"""llama.cpp: which models it has, and what it calls their layers (its converter's rules as of llama-cpp-python 0.3.36).

A base model becomes a GGUF by llama.cpp's own `convert_hf_to_gguf.py`; an adapter of it is a second file that is
applied at run time, written by `convert_lora_to_gguf.py` from a PEFT folder or by `--format gguf` here.
"""

from dataclasses import dataclass
from importlib.util import find_spec

from torch import nn

from xgblora.destinations.destination import Adapter, Destination
from xgblora.errors import InputError


@dataclass(frozen=True)
class Form:
    """How llama.cpp keeps a kind of model.

    Attributes:
        architecture: its name there.
        permuted: whether the rows of q_proj and k_proj lie in another order there: a head's two halves, which
            transformers rotates against one another, are interleaved.
        converted: whether its own converter of adapters gets them right.
    """

    architecture: str
    permuted: bool = False
    converted: bool = True


# by transformers' `model_type`; of others the converter changes more than the order of rows, or does not know them
FORMS = {
    **{kind: Form("llama", permuted=True) for kind in ("llama", "mistral")},
    **{kind: Form(kind, permuted=True) for kind in ("granite", "olmo", "smollm3")},
    **{kind: Form(kind) for kind in ("gemma", "gemma2", "olmo2", "phi3", "qwen2", "qwen3", "stablelm")},
    **{kind: Form(kind) for kind in ("cohere2", "exaone4", "nemotron", "starcoder2")},
    "cohere": Form("command-r"),
    "gemma3_text": Form("gemma3"),
    # its weights are transposed in transformers, and the converter transposes the adapter's product as if it were too
    "gpt2": Form("gpt2", converted=False),
    "phi": Form("phi2"),
}


def form_of(skeleton: nn.Module | None, *, flag: str) -> Form:
    """The form of a model.

    Args:
        skeleton: the base model, on the meta device too.
        flag: what the error begins with.

    Raises:
        InputError: llama.cpp does not have it, or not so that an adapter can be taken there directly.
    """
    if skeleton is None:
        raise InputError(f"{flag}: the base's configuration is needed and is not on this machine; give --model_name")
    kind = skeleton.config.model_type
    if kind not in FORMS:
        known = ", ".join(sorted(FORMS))
        raise InputError(f"{flag}: no adapter of a model of type {kind} can be taken to llama.cpp; known are {known}")
    return FORMS[kind]


def tensor_names(layers: tuple[str, ...], skeleton: nn.Module, *, flag: str) -> dict[str, str]:
    """What llama.cpp calls the weights of `layers`, by their names in transformers.

    Raises:
        InputError: the package gguf is missing, or llama.cpp has no such layer.
    """
    if find_spec("gguf") is None:
        raise InputError(f'{flag}: needs the package gguf (pip install "xgblora[destinations]")')
    import gguf

    architecture = form_of(skeleton, flag=flag).architecture
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, skeleton.config.num_hidden_layers)
    found = {layer: names.get_name(f"{layer}.weight", try_suffixes=(".weight",)) for layer in layers}
    missing = [layer for layer, name in found.items() if name is None]
    if missing:
        raise InputError(f"{flag}: llama.cpp has no layer {missing[0]} in its {architecture}")
    return found


def _model(adapter: Adapter) -> str:
    form = form_of(adapter.skeleton, flag="for=llama.cpp")
    if not form.converted:
        raise InputError(
            f"for=llama.cpp: its converter transposes adapters of {adapter.model_class}; --format gguf does not"
        )
    rows = "; the rows of q_proj and k_proj are reordered there" if form.permuted else ""
    return f"has {adapter.model_class} as {form.architecture}{rows}"


def _layers(adapter: Adapter) -> str:
    names = tensor_names(adapter.layers, adapter.skeleton, flag="for=llama.cpp")
    layer, name = next(iter(names.items()))
    return f"has all {len(names)} layers, {layer} as {name}; any rank. --format gguf writes its file directly"


DESTINATION = Destination("llama.cpp", (_model, _layers))
