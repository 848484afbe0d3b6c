"""Flags that have no effect with a trainer say so."""

import pytest

from xgblora.training import XGBLoRAArguments
from xgblora.training.idle_flags import idle_flags

OF_ESTIMATES = {
    "zo_eps": 0.01,
    "zo_directions": 2,
    "zo_pairing": "sequential",
    "zo_capture": "never",
    "trunk_cache_gb": 0.5,
    "zo_distribution": "rademacher",
    "zo_two_sided": False,
    "zo_normalise": True,
    "zo_optimizer": "momentum",
    "zo_momentum": 0.5,
}
OF_GRADIENTS = {
    "optim": "sgd",
    "optim_args": "a=1",
    "max_grad_norm": 0.5,
    "gradient_checkpointing": True,
    "torch_compile": True,
    "label_smoothing_factor": 0.1,
}


OF_POPULATIONS = {"members": 8, "sigma": 0.5, "temperature": 0.5}


def arguments(trainer: str, **flags) -> XGBLoRAArguments:
    return XGBLoRAArguments(output_dir="unused", use_cpu=True, trainer=trainer, **flags)


def test_backpropagation_estimates_nothing():
    lines = idle_flags(arguments("regular", **OF_ESTIMATES))
    assert [line.partition(" has no effect with --trainer regular: ")[0] for line in lines] == [
        f"--{name} {value}" for name, value in OF_ESTIMATES.items()
    ]
    assert lines[0].endswith("backpropagation computes the gradient, nothing is estimated")
    assert lines[-1].endswith("--optim chooses what steps")


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
def test_what_has_no_population_says_so_and_a_population_estimates_nothing():
    lines = arguments("zo", **OF_POPULATIONS).idle_flags
    assert lines[0] == "--members 8 has no effect with --trainer zo: it has no population"
    assert len(lines) == len(OF_POPULATIONS)
    given = {"reward": ["rewards.py:one"], "prompts": "rows.jsonl", **OF_POPULATIONS}
    lines = arguments("population", **given, zo_eps=0.5, xgblora_steps_per_iteration=3, weight_decay=0.1).idle_flags
    assert {line.split()[0] for line in lines} == {"--weight_decay", "--xgblora_steps_per_iteration", "--zo_eps"}
    lines = arguments("population", **OF_GRADIENTS).idle_flags
    assert [line.split()[0] for line in lines] == [f"--{name}" for name in OF_GRADIENTS]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
def test_either_name_of_checkpointed_activations_is_named_where_transformers_has_it():
    for name in {"gradient_checkpointing", "activation_checkpointing"} & XGBLoRAArguments.__dataclass_fields__.keys():
        (line,) = arguments("zo", **{name: True}).idle_flags
        assert line.startswith(f"--{name} True has no effect with --trainer zo: nothing is kept")


def test_a_run_by_rewards_names_what_orders_and_batches_examples():
    given = {"data_seed": 3, "dataloader_drop_last": True, "per_device_eval_batch_size": 8, "eval_delay": 2}
    lines = arguments("population", reward=["rewards.py:one"], prompts="rows.jsonl", **given).idle_flags
    assert {line.split()[0] for line in lines} == {f"--{name}" for name in given}
    assert arguments("population", **given).idle_flags == ()


def test_a_zeroth_order_run_has_no_gradient():
    lines = arguments("zo", **OF_GRADIENTS).idle_flags
    assert [line.split()[0] for line in lines] == [f"--{name}" for name in OF_GRADIENTS]
    assert all(" has no effect with --trainer zo: " in line for line in lines)


@pytest.mark.parametrize("trainer, flags", [("zo", OF_ESTIMATES), ("regular", OF_GRADIENTS), ("none", OF_ESTIMATES)])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
def test_what_has_an_effect_or_its_default_is_not_named(trainer, flags):
    assert arguments(trainer, **flags).idle_flags == ()
    assert arguments(trainer).idle_flags == ()
