"""What flags say of themselves: every one of ours does, and what it says means something."""

from dataclasses import dataclass, fields

import pytest
from transformers import HfArgumentParser, TrainingArguments

from xgblora.ops.update import RULES
from xgblora.training.arguments import FLAGS, AdapterArguments, XGBLoRAArguments
from xgblora.training.check_flags import TRAINERS
from xgblora.training.flag import Decides, Needs, asked_for, declare, flags_of, needing
from xgblora.training.inherited_flags import INHERITED
from xgblora.training.population_flags import PopulationArguments
from xgblora.training.run_identity import identity_of_flags, identity_of_task
from xgblora.training.task_flags import TaskArguments

# what a checkpoint says by the flag's own name, in the runs where it counts
NAMED = set(Decides) - {Decides.NOTHING, Decides.PASSING, Decides.ORIGIN, Decides.EXAMPLES, Decides.METHOD}
PASSING = (Decides.NOTHING, Decides.PASSING)
# a run that goes on from a checkpoint may have another value of these
MAY_CHANGE = {
    *("disable_tqdm", "dry_run", "icl_sfc", "label_smoothing_factor"),
    # two names of one
    *({"gradient_checkpointing", "activation_checkpointing"} & FLAGS.keys()),
    *("logging_nan_inf_filter", "logging_steps", "num_demos", "num_eval", "one_demo_set_per_example", "output_dir"),
    *("overwrite", "recipe", "remainders", "remove_unused_columns", "report_to", "resume_from_checkpoint", "run_name"),
    *("save_model", "save_steps", "save_strategy", "save_total_limit", "sfc", "torch_compile", "trunk_cache_gb"),
    *(
        "use_cpu",
        "device_map",
        "zo_agree_steps",
        "zo_capture",
        "zo_parallel",
        "reward_workers",
        "on_failure",
        "eval_prompts",
    ),
}


def arguments(**flags) -> XGBLoRAArguments:
    return XGBLoRAArguments(output_dir="unused", use_cpu=True, **flags)


def silent(kind: type) -> set[str]:
    """The flags that a dataclass has of its own, and that say nothing."""
    own = set(kind.__annotations__)
    return own - (flags_of(kind).keys() - (INHERITED.keys() - own))


@pytest.mark.parametrize("kind", [TaskArguments, AdapterArguments, PopulationArguments, XGBLoRAArguments])
def test_every_flag_of_ours_says_what_it_decides(kind):
    assert silent(kind) == set()


def test_one_that_does_not_is_found():
    @dataclass
    class Forgetful(AdapterArguments):
        one: int = declare(0, "Says it.", Decides.RUN)
        other: int = 0

    assert silent(Forgetful) == {"other"}


def test_flags_that_decide_nothing_that_lasts_are_these_alone():
    """A run is resumed under another value of them: a new one here is to be thought about twice."""
    assert {name for name, flag in FLAGS.items() if flag.decides in PASSING} == MAY_CHANGE


def test_what_it_decides_cannot_be_left_out():
    with pytest.raises(TypeError, match="decides"):
        declare(0, "A flag.")


def test_every_flag_that_decides_something_that_lasts_is_in_the_identity_of_a_run():
    runs = [
        {"xgblora_merge_frequency": 2, "zo_optimizer": "momentum"},
        {"xgblora_adaptive_merge": True},
        {"trainer": "regular", "lr_scheduler_type": "linear"},
        {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 100},
        {"trainer": "population", "reward": ["rewards.py:one"], "prompts": "rows.jsonl"},
    ]
    named = {name for flags in runs for name in identity_of_flags(arguments(**flags))}
    named |= identity_of_task(TaskArguments(objective="f1"), seed=0, max_length=8).keys()
    assert {name for name, flag in FLAGS.items() if flag.decides in NAMED} == named - {"method"}


def test_one_of_transformers_is_one_of_transformers_and_none_of_ours():
    # not every release has the one that stands in for gradient_checkpointing
    assert INHERITED.keys() - {"activation_checkpointing"} <= {field.name for field in fields(TrainingArguments)}
    ours = (TaskArguments, AdapterArguments, PopulationArguments)
    assert not INHERITED.keys() & {name for kind in ours for name in kind.__annotations__}
    assert not INHERITED.keys() & XGBLoRAArguments.__annotations__.keys()


def test_what_a_flag_can_say_is_said_by_one():
    assert {flag.decides for flag in FLAGS.values()} == set(Decides)
    assert {need for flag in FLAGS.values() for need in flag.needs} == set(Needs)


def test_a_flag_speaks_of_trainers_optimizers_and_flags_that_there_are():
    for flag in FLAGS.values():
        assert flag.idle.keys() <= {*TRAINERS, "rewards"}
        assert flag.optimizers.keys() <= RULES.keys()
        assert flag.turns_on in {None, *FLAGS}


def test_transformers_own_parser_takes_them():
    task, args = HfArgumentParser((TaskArguments, XGBLoRAArguments)).parse_args_into_dataclasses(
        ["--num_train=3", "--zo_eps=0.5", "--use_cpu", "--output_dir=unused"], look_for_args_file=False
    )
    assert (task.num_train, args.zo_eps) == (3, 0.5)


def test_flags_are_found_by_what_they_need():
    assert needing(AdapterArguments, Needs.RANK) == {"lora_r": 1, "lora_init": "kaiming"}
    assert needing(XGBLoRAArguments, Needs.RANK, Needs.COPIES) == {
        "lora_r": 1,
        "lora_init": "kaiming",
        "zo_pairing": "auto",
    }


@pytest.mark.parametrize(
    "given, asked",
    [
        ({}, []),
        ({"staged_eval": True}, ["staged_eval"]),
        ({"load_best_round_at_end": True}, ["load_best_round_at_end"]),
        ({"early_stopping_rounds": 2}, ["early_stopping_rounds"]),
        (
            {"early_stopping_rounds": 2, "xgblora_adaptive_merge": True},
            ["xgblora_adaptive_merge", "early_stopping_rounds"],
        ),
    ],
)
def test_a_flag_that_another_turned_on_was_not_asked_for(given, asked):
    args = arguments(**given)
    assert asked_for(args, Needs.DEVELOPMENT_EXAMPLES) == asked
    assert args.staged_eval == bool(given.keys() & {"staged_eval", "load_best_round_at_end", "early_stopping_rounds"})


@pytest.mark.parametrize(
    "optimizer, read",
    [
        ("sgd", {}),
        ("sign", {}),
        ("momentum", {"zo_momentum": "beta1"}),
        ("adam", {"adam_beta1": "beta1", "adam_beta2": "beta2", "adam_epsilon": "epsilon"}),
    ],
)
def test_an_optimizer_reads_the_flags_that_say_so(optimizer, read):
    assert arguments(zo_optimizer=optimizer).flags_of_optimizer == read
