"""transformers: `from_pretrained` of the adapter's own folder, which reads the base it names and needs PEFT."""

from xgblora.boosting.base_files import base_folder
from xgblora.destinations.destination import Adapter, Destination
from xgblora.errors import InputError


def _base(adapter: Adapter) -> str:
    if adapter.base is None:
        raise InputError("for=transformers: the adapter would name no base model to load; give --model_name")
    if base_folder(adapter.base) is None:
        return f"loads {adapter.base}, which is not on this machine, as the base"
    return f"loads {adapter.base} as the base"


def _layers(adapter: Adapter) -> str:
    if adapter.skeleton is None:
        return f"the configuration of the base is not here, so whether it has {adapter.layers[0]} is not known"
    known = dict(adapter.skeleton.named_modules())
    missing = [name for name in adapter.layers if name not in known]
    if missing:
        raise InputError(
            f"for=transformers: {adapter.model_class} has no layer {missing[0]}; is {adapter.base} the base?"
        )
    return f"finds all {len(adapter.layers)} layers in {adapter.model_class}; any rank"


DESTINATION = Destination("transformers", (_base, _layers))
