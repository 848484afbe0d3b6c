"""A model spread over several devices by `--device_map`, as accelerate cuts it; and where its blocks came to lie."""

from itertools import groupby

import torch
from torch import nn
from transformers import TrainingArguments

from xgblora.adapters.dispatched import devices_of
from xgblora.errors import InputError
from xgblora.process_group import started
from xgblora.scoring.blocks import blocks_of
from xgblora.training.task_flags import TaskArguments

# of a layer that has adapters: these lie where the arena does
_OF_ADAPTERS = ("a", "b")


def check_device_map(task: TaskArguments, args: TrainingArguments) -> None:
    """Raise InputError if `--device_map` does not go with the other flags."""
    if task.device_map == "none":
        return
    given = f"device_map={task.device_map}"
    if max(args.world_size, started()) > 1:
        raise InputError(
            f"{given}: spreads one model over all devices, and there are {max(args.world_size, started())} processes; "
            "start one, without torchrun or accelerate launch"
        )
    if args.full:
        raise InputError(f"{given}: --full trains one block of numbers on one device; leave it out, or train adapters")
    if args.use_cpu and torch.accelerator.is_available():
        raise InputError(f"{given}: fills the devices that --use_cpu leaves alone; leave one of them out")


def placement(model: nn.Module) -> str:
    """Where the blocks of `model` lie, in one line: "layers on cuda:0 0-11, cuda:1 12-23"; or the one device."""
    devices = [str(device) for device in devices_of(model)]
    blocks = list(blocks_of(model).values())
    if len(devices) == 1 or not blocks:
        return f"all on {' and '.join(devices)}"
    runs, first = [], 0
    for device, of_device in groupby(map(_device_of, blocks)):
        last = first + len(list(of_device)) - 1
        runs.append(f"{device} {first}-{last}" if last > first else f"{device} {first}")
        first = last + 1
    return f"layers on {', '.join(runs)}"


def _device_of(block: nn.Module) -> torch.device:
    named = block.named_parameters()
    return next(part.device for name, part in named if name.rpartition(".")[2] not in _OF_ADAPTERS)
