"""Flags of transformers that cannot work here: each is refused by its name, with the reason (docs/reliability.md)."""

from dataclasses import MISSING, fields
from typing import Any

from xgblora.errors import InputError

_ONE_DEVICE = "the adapters train on one device; leave it out"
_OWN_CHECKPOINTS = (
    "checkpoints are written whole by --save_strategy, and --resume_from_checkpoint last goes on from them"
)
_OWN_DTYPE = "an evaluation would leave the model itself in another dtype; give --dtype"
_NO_PUSH = "a run pushes nothing; push OUTPUT_DIR/model when it has ended"

REFUSED = {
    "deepspeed": _ONE_DEVICE,
    "fsdp": _ONE_DEVICE,
    "fsdp_config": _ONE_DEVICE,
    "parallelism_config": _ONE_DEVICE,
    "accelerator_config": _ONE_DEVICE,
    "ddp_backend": _ONE_DEVICE,
    "push_to_hub": _NO_PUSH,
    "hub_always_push": _NO_PUSH,
    "enable_jit_checkpoint": _OWN_CHECKPOINTS,
    "fp16_full_eval": _OWN_DTYPE,
    "bf16_full_eval": _OWN_DTYPE,
    "ignore_data_skip": "a run that goes on reads the batches that come next; leave it out",
    "auto_find_batch_size": "another batch in the middle of a run is another run; give --per_device_train_batch_size",
    "use_liger_kernel": "it replaces the layers that carry adapters; leave it out",
    "eval_do_concat_batches": "the accuracy is that of the whole development set; leave it out",
    "batch_eval_metrics": "the accuracy is that of the whole development set; leave it out",
}
_OF_WORKERS = ("dataloader_persistent_workers", "dataloader_multiprocessing_context", "dataloader_prefetch_factor")
_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def check_refused(args: Any) -> None:
    """Raise InputError if a flag of `args`, an `XGBLoRAArguments`, was given that cannot work here."""
    defaults = {of.name: of.default if of.default is not MISSING else of.default_factory() for of in fields(args)}
    for name, reason in REFUSED.items():
        value = getattr(args, name, None)
        if (value and value != defaults[name]) or (defaults.get(name) is True and value is False):
            raise InputError(f"{name}={value}: {reason}")
    for name in _OF_WORKERS:
        if getattr(args, name) and args.dataloader_num_workers < 1:
            raise InputError(f"{name}={getattr(args, name)}: is for workers; give --dataloader_num_workers")
    if args.torch_compile_mode is not None and args.torch_compile_mode not in _COMPILE_MODES:
        raise InputError(f"torch_compile_mode={args.torch_compile_mode}: must be one of {', '.join(_COMPILE_MODES)}")
