"""What the flags of transformers say that `XGBLoRAArguments` takes over as they are (flag.py).

One that is not here decides nothing that lasts, makes no difference between methods, and only `--help_all` shows it.
"""

from functools import partial

from xgblora.training.flag import Decides, Flag

_NO_GRADIENT_STEPS = {
    "zo": "--zo_optimizer chooses what steps",
    "population": "the fitness of members makes the step",
}
_NOTHING_KEPT = dict.fromkeys(("zo", "population"), "nothing is kept for a backward pass")
_OWN_LOSS = {
    "zo": "--objective chooses the loss",
    "population": "--objective or --reward says what a member is worth",
}
_OWN_ORDER = {"rewards": "--seed decides which prompts a step reads"}
_of_backpropagation = partial(Flag, Decides.GRADIENT, shown=False)


def _of_adam(name: str) -> Flag:
    idle = {"population": _NO_GRADIENT_STEPS["population"]}
    return _of_backpropagation(optimizers={"adam": name}, idle=idle)


INHERITED = {
    "gradient_accumulation_steps": Flag(Decides.RUN, idle={"rewards": "--prompts_per_step says what a step reads"}),
    "weight_decay": Flag(Decides.RUN, idle={"population": "--decay lets earlier steps fade"}),
    "lr_scheduler_kwargs": Flag(Decides.RUN, shown=False),
    "train_sampling_strategy": Flag(Decides.RUN, idle=_OWN_ORDER, shown=False),
    "data_seed": Flag(Decides.RUN, idle=_OWN_ORDER, shown=False),
    "dataloader_drop_last": Flag(Decides.RUN, idle=_OWN_ORDER, shown=False),
    "load_best_model_at_end": Flag(Decides.RUN),
    "optim": _of_backpropagation(idle=_NO_GRADIENT_STEPS),
    "optim_args": _of_backpropagation(idle=_NO_GRADIENT_STEPS),
    "optim_target_modules": _of_backpropagation(idle=_NO_GRADIENT_STEPS),
    "adam_beta1": _of_adam("beta1"),
    "adam_beta2": _of_adam("beta2"),
    "adam_epsilon": _of_adam("epsilon"),
    "max_grad_norm": _of_backpropagation(idle=dict.fromkeys(("zo", "population"), "there are no gradients to clip")),
    "bf16": _of_backpropagation(),
    "fp16": _of_backpropagation(),
    "neftune_noise_alpha": _of_backpropagation(idle=dict.fromkeys(("zo", "population"), "forwards add no noise")),
    # newer releases of transformers have the second in place of the first
    "gradient_checkpointing": Flag(Decides.PASSING, idle=_NOTHING_KEPT, shown=False),
    "activation_checkpointing": Flag(Decides.PASSING, idle=_NOTHING_KEPT, shown=False),
    "torch_compile": Flag(
        Decides.PASSING,
        idle={
            "zo": "forwards run the model as it is; on a GPU they are captured as CUDA graphs",
            "population": "forwards run the model as it is",
        },
        shown=False,
    ),
    "label_smoothing_factor": Flag(
        Decides.PASSING,
        idle=_OWN_LOSS,
        shown=False,
    ),
    "warmup_steps": Flag(Decides.WARMUP),
    "eval_delay": Flag(
        Decides.EVALUATIONS,
        idle={"rewards": "held-out prompts are completed first of all, and then every --eval_steps"},
        shown=False,
    ),
    "eval_on_start": Flag(Decides.EVALUATIONS, shown=False),
    "metric_for_best_model": Flag(Decides.BEST_MODEL, shown=False),
    "greater_is_better": Flag(Decides.BEST_MODEL, shown=False),
    "num_train_epochs": Flag(Decides.EPOCHS),
    "save_steps": Flag(Decides.NOTHING),
    "save_total_limit": Flag(Decides.NOTHING),
    "disable_tqdm": Flag(Decides.NOTHING, shown=False),
    "run_name": Flag(Decides.NOTHING, shown=False),
    "use_cpu": Flag(Decides.PASSING),
}
