"""Taking the result away: all boosters stacked as one LoRA adapter that PEFT loads."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from xgblora.adapters import Rank1Linear
from xgblora.adapters.kinds.registry import kind_of
from xgblora.adapters.targets import stated_experts
from xgblora.atomic_file import replacing_folder
from xgblora.boosting.base_files import base_folder, copy_tokenizer
from xgblora.boosting.ledger import Ledger
from xgblora.boosting.truncation import Factors, TruncationCost, adapter_factors, matrix_names, rank_of
from xgblora.errors import InputError

# In models with experts PEFT reads these names of layers as those under which experts were saved once, and adapts the
# experts in their place (peft.utils.transformers_weight_conversion). What it is told to be a parameter is left alone.
READ_AS_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def export_peft(
    ledger: Ledger,
    folder: str | os.PathLike,
    *,
    base_model: str | nn.Module | None = None,
    rank: int | None = None,
    task_type: str | None = "CAUSAL_LM",
    whole: Mapping[str, torch.Tensor] | None = None,
) -> TruncationCost | None:
    """Write the boosters as a folder that `peft.PeftModel.from_pretrained(base, folder)` loads.

    T boosters of rank r are one LoRA adapter of rank T * r: `base + adapter` computes what `base + ledger` does, up to
    the rounding of the merged weights. The scales are folded into `lora_B`, and `lora_alpha` equals the rank, so that
    PEFT's own scaling is 1. PEFT itself is not needed. The base's tokenizer lies beside it where the base is on this
    machine. The folder appears whole; one that is there already is replaced.

    Args:
        ledger: the boosters.
        folder: where to.
        base_model: the base model where the ledger's name for it is not the right one: another name, or the module (on
            any device, the meta device included), which also says of what kind its layers are: whether they store
            their weights transposed (`Conv1D` of GPT-2), which PEFT finds out by itself too, and warns.
        rank: at most this rank, by the nearest adapter that has it (see `truncation`).
        task_type: what PEFT makes of it; "CAUSAL_LM", "SEQ_CLS", ..., None for a model that is not transformers'.
        whole: parameters that leave as they are trained and not as an adapter, by name: those of a classification head.

    Returns:
        What the smaller rank cost; None if nothing had to be cut off.

    Raises:
        InputError: the ledger is empty or holds numbers that are not finite, rank is below 1, PEFT adapts no layer of a
            kind that `base_model` has, or would load a layer's boosters under another name.
    """
    fan_in_fan_out = isinstance(base_model, nn.Module) and _fan_in_fan_out(base_model, ledger)
    if isinstance(base_model, PreTrainedModel):
        _refuse_renamed(ledger.origin.layers, base_model)
    parameters = _parameters(ledger, base_model)
    factors, cost = adapter_factors(ledger, rank)
    apart = {name.rpartition(".")[0] for name in whole or ()}
    config = _config(ledger, rank_of(factors), base_model, task_type)
    config |= {"target_parameters": sorted(parameters.values())} if parameters else {}
    # full names: a suffix could match layers that were not adapted
    left_out = {*parameters, *apart}
    config["target_modules"] = [name for name in ledger.origin.layers if name not in left_out]
    config |= {"modules_to_save": sorted(apart)} if apart else {}
    config["fan_in_fan_out"] = fan_in_fan_out
    base = base_folder(config["base_model_name_or_path"], config["revision"])
    with replacing_folder(folder) as temporary:
        save_file(_state(ledger, factors, whole or {}), temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if base is not None:
            copy_tokenizer(base, temporary, result=Path(folder))
    return cost


def peft_tensors(ledger: Ledger, rank: int | None = None) -> dict[str, torch.Tensor]:
    """What `export_peft` writes as `adapter_model.safetensors`; raises what it raises."""
    return _state(ledger, adapter_factors(ledger, rank)[0], {})


def _state(ledger: Ledger, factors: dict[str, Factors], whole: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """PEFT's names: `lora_A` fp32 [rank, K], `lora_B` fp32 [N, rank]; and what leaves whole.

    Of E experts `lora_A` is [E * rank, K], expert after expert, and `lora_B` [N, rank * E], rank after rank.
    """
    state = {f"base_model.model.{name}": tensor.cpu().contiguous() for name, tensor in whole.items()}
    apart = {name.rpartition(".")[0] for name in whole}
    names = {slot.name: matrix_names(slot, ledger.origin.rank) for slot in ledger.slots if slot.name not in apart}
    for name, matrices in names.items():
        a, b = (
            torch.stack(parts) for parts in zip(*((factors[one].a, factors[one].b) for one in matrices), strict=True)
        )
        place = name if len(matrices) == 1 else _place_of_experts(name, [n for n in names if len(names[n]) > 1])
        state[f"base_model.model.{place}.lora_A.weight"] = a.flatten(0, 1).contiguous()
        state[f"base_model.model.{place}.lora_B.weight"] = b.permute(2, 1, 0).flatten(1).contiguous()
    return state


def _place_of_experts(name: str, layers: list[str]) -> str:
    """Where PEFT has the matrices of a mixture's parameter: about the module, the first parameter innermost."""
    mixture = name.rpartition(".")[0]
    others = [other for other in layers if other.rpartition(".")[0] == mixture]
    return mixture + ".base_layer" * (len(others) - 1 - others.index(name))


def _parameters(ledger: Ledger, base_model: str | nn.Module | None) -> dict[str, str]:
    """The layers that PEFT is told of as parameters, and the names of these."""
    experts = {slot.name: slot.name for slot in ledger.slots if slot.rank > ledger.origin.rank}
    # PEFT goes by the type of the model, whether a layer of this one has experts or none
    if not experts and not stated_experts(getattr(base_model, "config", None)):
        return {}
    others = [name for name in ledger.origin.layers if name.rpartition(".")[2] in READ_AS_EXPERTS]
    return {**{name: f"{name}.weight" for name in others}, **experts}


def _refuse_renamed(names: Iterable[str], model: PreTrainedModel) -> None:
    """Raise InputError if PEFT would rename a layer as it loads.

    It renames what it finds as transformers renames an old checkpoint's parameters. Some of these expressions match
    names of today too, and the boosters would go nowhere, without a word.
    """
    renamings = [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightRenaming)]
    for name in names:
        key = f"{name}.lora_A.weight"
        renamed = rename_source_key(key, renamings, [])[0]
        if renamed != key:
            raise InputError(
                f"{name}: PEFT would load its boosters as those of {renamed.removesuffix('.lora_A.weight')}, which is "
                "no layer; export the merged model instead"
            )


def _config(ledger: Ledger, rank: int, base_model: str | nn.Module | None, task_type: str | None) -> dict:
    other_name = base_model if isinstance(base_model, str) else None
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": other_name or ledger.origin.model,
        "revision": None if other_name else ledger.origin.revision,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


def _fan_in_fan_out(model: nn.Module, ledger: Ledger) -> bool:
    """PEFT's entry for the adapted layers of `model`; an InputError where it adapts no such layer."""
    modules = dict(model.named_modules())
    layers = {name: modules[name] for name in ledger.origin.layers if name in modules}
    kinds = {name: layer.kind if isinstance(layer, Rank1Linear) else kind_of(layer) for name, layer in layers.items()}
    known = {name: kind for name, kind in kinds.items() if kind is not None}
    for name, kind in known.items():
        if kind.fan_in_fan_out is None:
            raise InputError(f"{name}: PEFT adapts no layer of its kind ({kind.name}); export the merged model instead")
    return any(kind.fan_in_fan_out for kind in known.values())
