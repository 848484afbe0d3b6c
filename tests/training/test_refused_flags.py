"""Flags of transformers that cannot work here are refused by name; the others are tried in tests/fuzz."""

import pytest

from xgblora.errors import InputError
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.refused_flags import REFUSED

VALUES = {"eval_do_concat_batches": False, "ddp_backend": "gloo", "parallelism_config": object()}
CONFIGURATIONS = ("deepspeed", "fsdp", "fsdp_config", "accelerator_config")


def value_of(name):
    return VALUES.get(name, "x.json" if name in CONFIGURATIONS else True)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_its_reason(name, tmp_path):
    with pytest.raises(InputError) as error:
        XGBLoRAArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value_of(name)})
    assert str(error.value) == f"{name}={value_of(name)}: {REFUSED[name]}"


@pytest.mark.parametrize(
    "flags, said",
    [
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers=True: is for workers"),
        ({"dataloader_multiprocessing_context": "fork"}, "dataloader_multiprocessing_context=fork: is for workers"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor=2: is for workers"),
        ({"torch_compile_mode": "x"}, "torch_compile_mode=x: must be one of default"),
    ],
)
def test_a_flag_that_needs_another(flags, said, tmp_path):
    with pytest.raises(InputError) as error:
        XGBLoRAArguments(output_dir=str(tmp_path), use_cpu=True, **flags)
    assert str(error.value).startswith(said)


def test_what_is_given_as_it_is_anyway_is_taken(tmp_path):
    XGBLoRAArguments(output_dir=str(tmp_path), use_cpu=True, push_to_hub=False, eval_do_concat_batches=True)
