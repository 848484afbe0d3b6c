"""Models that accelerate has spread over several devices (`device_map`): where they lie, and the hooks on their layers.

accelerate gives each module a forward of its own that moves inputs to the device of the module's weights. Where that is
all that it does, it does so for what stands in a layer's place, and the layer itself only multiplies. Where the weights
lie on the CPU or on disk, and come for each forward anew, there is nothing that a merge could be written into.
"""

from typing import Any

import torch
from torch import nn

from xgblora.errors import InputError


def devices_of(model: nn.Module) -> list[torch.device]:
    """The devices on which parameters of `model` lie, in the order of its modules."""
    return list(dict.fromkeys(parameter.device for parameter in model.parameters()))


def refuse_offloaded(model: nn.Module) -> None:
    """Raise InputError if accelerate gives a module of `model` its weights for each forward anew."""
    for name, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        if any(getattr(one, "offload", False) for one in getattr(hook, "hooks", (hook,))):
            raise InputError(
                f"{name}: is offloaded to the CPU or to disk (device_map), where no merge can be written; give devices "
                "that hold the whole model, or load it in fewer bits"
            )


def take_hook(module: nn.Module) -> Any:
    """Take accelerate's hook off `module` and return it, if all that it does is to move inputs; else None."""
    hook = getattr(module, "_hf_hook", None)
    if hook is None:
        return None
    # installed, since it made the hook
    from accelerate.hooks import AlignDevicesHook, remove_hook_from_module

    if type(hook) is not AlignDevicesHook or hook.offload or hook.io_same_device:
        return None
    remove_hook_from_module(module)
    # it leaves the forward of the class on the instance, as if that were one of its own
    if getattr(module.forward, "__func__", None) is type(module).forward:
        del module.forward
    return hook


def give_hook(module: nn.Module, hook: Any) -> None:
    """Let a hook that `take_hook` returned move the inputs of `module`; nothing for None."""
    if hook is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(module, hook)
