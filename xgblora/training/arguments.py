"""The flags of a run: which adapters, when to merge, how to train."""

from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import torch
from transformers import TrainingArguments

from xgblora.adapters import Depths
from xgblora.adapters.rank1_linear import scale_of
from xgblora.boosting import AdaptiveRule, MergePolicy
from xgblora.boosting.shrinkage import FACTORS, Shrinkage
from xgblora.boosting.starts import FIRST_STARTS, REINITS, RoundStart
from xgblora.process_group import started
from xgblora.training.check_flags import check_flags
from xgblora.training.check_schedule import check_schedule
from xgblora.training.flag import Decides, Needs, declare, flags_of
from xgblora.training.idle_flags import idle_flags
from xgblora.training.inherited_flags import INHERITED
from xgblora.training.population_flags import PopulationArguments
from xgblora.training.task_flags import TaskArguments
from xgblora.zo import Estimator, OneSided, TwoSided, UpdateRule

_of_method = partial(declare, False, decides=Decides.METHOD, in_comparison="use --methods")
_each_step = {"population": "each step is a round"}
_of_adaptive_rule = partial(declare, decides=Decides.ADAPTIVE_RULE, needs=(Needs.MERGES,), idle=_each_step)
_of_rounds = partial(declare, decides=Decides.ROUNDS, needs=(Needs.ROUNDS,), idle=_each_step)
_of_estimates = partial(
    declare,
    decides=Decides.ESTIMATE,
    needs=(Needs.ESTIMATE,),
    idle={
        "regular": "backpropagation computes the gradient, nothing is estimated",
        "population": "members are scored, nothing is estimated",
    },
)
_of_zeroth_order_rules = partial(
    declare,
    decides=Decides.OPTIMIZER,
    needs=(Needs.ESTIMATE,),
    idle={"regular": "--optim chooses what steps", "population": "the fitness of members makes the step"},
)


@dataclass
class AdapterArguments:
    """The adapters, boosting and zeroth-order training."""

    trainer: Literal["zo", "regular", "population", "none"] = declare(
        "zo",
        "zo: forward passes alone; regular: backpropagation (AdamW); population: evolution, by a task's objective or "
        "by rewards (docs/rewards.md); none: evaluate zero-shot.",
        Decides.RUN,
        in_comparison="use --methods",
    )
    xgblora: bool = _of_method("Gradient boosting with rank-1 adapters (the default).")
    lora: bool = _of_method("Plain LoRA of rank --lora_r instead of boosting.")
    full: bool = _of_method(
        "Full-parameter zeroth-order training (MeZO), no adapters; rates are 1e-7 to 1e-5, and an fp32 copy of the "
        "weights lies beside them (4 bytes a parameter).",
    )
    lora_r: int = declare(1, "Rank of plain LoRA; XGBLoRA always uses 1.", Decides.ORIGIN, needs=(Needs.RANK,))
    lora_alpha: float = declare(
        16.0, "The adapters' scale is lora_alpha / rank.", Decides.ORIGIN, needs=(Needs.ADAPTERS,)
    )
    target_modules: list[str] | None = declare(
        None,
        "Layers to adapt: names, dotted suffixes, one regular expression, or all-linear; query and value by default.",
        Decides.ORIGIN,
        needs=(Needs.ADAPTERS,),
    )
    xgblora_layers: str = declare(
        "0.0:1.0",
        "Of the target layers those of blocks at depths START:STOP; 0.5:1.0 is the upper half.",
        Decides.ORIGIN,
        needs=(Needs.ADAPTERS,),
    )
    lora_init: Literal[tuple(FIRST_STARTS)] = declare(
        "kaiming", "How plain LoRA's adapter starts, see --xgblora_reinit.", Decides.ROUNDS, needs=(Needs.RANK,)
    )
    xgblora_steps_per_iteration: int = declare(
        0,
        "Merge after every N optimizer steps; 0: not by steps.",
        Decides.STEPS_RULE,
        needs=(Needs.MERGES,),
        idle=_each_step,
    )
    xgblora_merge_frequency: int = declare(
        1,
        "Merge after every F epochs; 0: not by epochs. Ignored when merging by steps.",
        Decides.EPOCHS_RULE,
        needs=(Needs.MERGES,),
        idle=_each_step,
    )
    xgblora_adaptive_merge: bool = declare(
        False,
        "Merge a round's best adapter when the smoothed development loss stops improving (--eval_steps).",
        Decides.BOOSTING,
        idle=_each_step,
        needs=(Needs.ROUNDS, Needs.DEVELOPMENT_EXAMPLES, Needs.ONE_DEVELOPMENT_SET),
    )
    xgblora_adaptive_ema: float = _of_adaptive_rule(
        AdaptiveRule.ema, "Decay of the moving average that smooths the development loss; 0: not smoothed."
    )
    xgblora_adaptive_patience: int = _of_adaptive_rule(
        AdaptiveRule.patience, "Evaluations in a row without improvement after which a round ends."
    )
    xgblora_adaptive_threshold: float = _of_adaptive_rule(
        AdaptiveRule.threshold,
        "Least improvement of the smoothed loss that counts, relative to the round's lowest (0.001: by 0.1%%).",
    )
    xgblora_adaptive_min_steps: int = _of_adaptive_rule(
        AdaptiveRule.min_steps, "Optimizer steps before which no round ends."
    )
    xgblora_adaptive_max_steps: int = _of_adaptive_rule(
        AdaptiveRule.max_steps, "Optimizer steps after which a round ends, evaluated there; 0: no limit."
    )
    early_stopping_rounds: int = _of_rounds(
        0,
        "End training when K rounds brought no lower development loss, and keep the best round (staged_eval and "
        "load_best_round_at_end are on then); 0: never.",
        needs=(Needs.ROUNDS, Needs.DEVELOPMENT_EXAMPLES, Needs.ONE_DEVELOPMENT_SET),
        turns_on="load_best_round_at_end",
    )
    xgblora_reinit: Literal[tuple(REINITS)] = _of_rounds(
        "kaiming",
        "How a round's adapter starts (docs/boosting.md); data and residual measure it, of the first round too.",
    )
    xgblora_shrinkage: str = _of_rounds(
        "1.0",
        "Factor on the scale of a booster when it is merged, above 0 and at most 1 (XGBoost's eta); line_search: that "
        f"of {', '.join(map(str, FACTORS))} with the lowest development loss.",
    )
    xgblora_colsample: float = _of_rounds(
        1.0, "Share of the layers that a round trains, drawn for every round; 1.0: all."
    )
    xgblora_hard_examples: float = _of_estimates(
        0.0,
        "Share of each batch that is drawn from the fifth of the examples that had the highest losses; 0: none.",
        needs=(Needs.ROUNDS, Needs.ESTIMATE),
    )
    rounding: Literal["remainder", "stochastic", "nearest"] = declare(
        "remainder", "Rounding into 16-bit weights; remainder loses nothing.", Decides.ROUNDS, needs=(Needs.ADAPTERS,)
    )
    remainders: Literal["device", "host"] = declare(
        "device", "Where remainders lie; host: 2 bytes a weight less on the device.", Decides.PASSING
    )
    staged_eval: bool = declare(
        False,
        "Evaluate on the development set after every merge, and plot it by round.",
        Decides.EVALUATIONS,
        needs=(Needs.ROUNDS, Needs.DEVELOPMENT_EXAMPLES),
        idle=_each_step,
    )
    load_best_round_at_end: bool = _of_rounds(
        False,
        "Go back to the round with the lowest development loss when training ends (evaluates every round).",
        needs=(Needs.ROUNDS, Needs.DEVELOPMENT_EXAMPLES),
        turns_on="staged_eval",
    )
    zo_eps: float = _of_estimates(1e-3, "Size of the zeroth-order perturbation.")
    zo_directions: int = _of_estimates(1, "Random directions a step.")
    # sums are taken in another order
    zo_pairing: Literal["auto", "paired", "sequential"] = _of_estimates(
        "auto",
        "paired: both signs and all directions in one forward; sequential: one after the other.",
        needs=(Needs.ESTIMATE, Needs.COPIES),
    )
    zo_capture: Literal["auto", "never"] = _of_estimates(
        "auto",
        "auto: on a GPU the step is captured as CUDA graphs, one a batch shape; never: it is not.",
        decides=Decides.PASSING,
    )
    trunk_cache_gb: float | None = _of_estimates(
        None,
        "GB of memory for the hidden states of texts below all adapters, each computed once; what has no room lies in "
        "a file of the run's folder. A quarter of what is free without it; 0: nothing is remembered.",
        decides=Decides.PASSING,
        needs=(Needs.ESTIMATE, Needs.ADAPTERS),
        idle={"regular": "backpropagation runs all layers", "population": "every member has a trunk of its own"},
    )
    zo_distribution: Literal["gaussian", "rademacher"] = _of_estimates("gaussian", "Distribution of the directions.")
    zo_two_sided: bool = _of_estimates(
        True, "Losses on both sides of the weights (2 forwards a direction); false: on one side, and one without noise."
    )
    zo_normalise: bool = _of_estimates(
        False,
        "Divide one-sided estimates by the standard deviation of their losses (FZOO); rates are smaller by zo_eps.",
    )
    zo_optimizer: Literal["sgd", "momentum", "adam", "sign"] = _of_zeroth_order_rules(
        "sgd",
        "What steps along the estimate; adam reads --adam_beta1, --adam_beta2 and --adam_epsilon.",
        decides=Decides.ESTIMATE,
    )
    zo_parallel: Literal["examples", "directions", "signs"] = _of_estimates(
        "examples",
        "What each of several processes has: its own batch, other directions, or one sign of two (docs/scaling.md).",
        decides=Decides.PASSING,
    )
    zo_agree_steps: int = declare(
        100, "Steps between comparisons of what several processes train; 0: at merges and checkpoints.", Decides.NOTHING
    )
    zo_momentum: float = _of_zeroth_order_rules(
        0.9, "Decay of the first moment with --zo_optimizer momentum.", optimizers={"momentum": "beta1"}
    )


@dataclass
class XGBLoRAArguments(TrainingArguments, PopulationArguments, AdapterArguments):
    """`transformers.TrainingArguments` with the adapters, the merge policy and zeroth-order training.

    Defaults that differ from transformers': batches of 16, a constant learning rate of 1e-4, losses logged every 10
    steps and not filtered, checkpoints and reports off, seed 0.

    Raises:
        InputError: an argument is out of range, or two contradict each other.
    """

    _argument_group_name = "adapters, merging and training"
    _inherited_flags = INHERITED

    output_dir: str | None = declare(
        None,
        "Folder of the run; runs/<model>-<task>-<method>-... without it.",
        Decides.NOTHING,
        in_comparison="use --output_root",
    )
    learning_rate: float = declare(1e-4, "Learning rate.", Decides.RUN)
    lr_scheduler_type: str = declare("constant", "Schedule of the learning rate.", Decides.RUN)
    per_device_train_batch_size: int = declare(
        16, "Training examples a step.", Decides.RUN, idle={"rewards": "--prompts_per_step says what a step reads"}
    )
    per_device_eval_batch_size: int = declare(
        32,
        "Examples of an evaluation batch.",
        Decides.HELD_OUT_LOSS,
        idle={"rewards": "as many held-out prompts are completed together as fit"},
    )
    max_steps: int = declare(-1, "Optimizer steps; -1: as many as num_train_epochs has.", Decides.STEPS)
    logging_steps: float = declare(10, "Steps between log entries.", Decides.PASSING)
    logging_nan_inf_filter: bool = declare(False, "Hide losses that are not finite.", Decides.PASSING, shown=False)
    eval_strategy: str = declare(
        "steps",
        "When to evaluate on the development set or held-out prompts: no, steps or epoch.",
        Decides.EVALUATIONS,
    )
    eval_steps: float | None = declare(100, "Steps between evaluations on the development set.", Decides.EVALUATIONS)
    save_strategy: str = declare("no", "When to write checkpoints: no, steps or epoch.", Decides.NOTHING)
    # in this order, because HfArgumentParser takes the second alternative for the type of the flag
    report_to: None | str | list[str] = declare(
        "none", "Where else to report: tensorboard, wandb, ...", Decides.NOTHING
    )
    remove_unused_columns: bool = declare(
        False, "Leave batches as the collator makes them.", Decides.PASSING, shown=False
    )
    resume_from_checkpoint: str | None = declare(
        None,
        "Checkpoint folder to go on from; last: the newest whole one in output_dir, or a new run without one.",
        Decides.NOTHING,
        in_comparison="every run goes on from its newest checkpoint",
    )
    seed: int = declare(
        0, "Seed of everything: examples, order, adapters, directions.", Decides.RUN, in_comparison="use --seeds"
    )

    def __post_init__(self):
        if self.shrinkage.factor is not None:
            # one spelling: a checkpoint compares it
            self.xgblora_shrinkage = str(self.shrinkage.factor)
        self.xgblora_layers = str(self.depths)
        check_flags(self)
        # transformers fills in a folder of its own
        self.names_its_folder = self.output_dir is not None
        # in their order: early stopping turns on the best round, and that one staged evaluation
        for name, flag in flags_of(self).items():
            if flag.turns_on and getattr(self, name):
                setattr(self, flag.turns_on, True)
        if self.full:
            # a weight has one value at a time
            self.zo_pairing = "sequential"
        # before transformers and the lines below fill in values of their own
        self.idle_flags = idle_flags(self)
        if started() > 1 and not torch.accelerator.is_available():
            # transformers takes each process for a run of its own where there is no GPU and nobody says so
            self.use_cpu = True
        super().__post_init__()
        check_schedule(self)
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type == "cuda"
        if self.trainer in ("zo", "population"):
            # there are no gradients to clip, and looking for them costs time every step
            self.max_grad_norm = 0.0
        if self.n_gpu > 1:
            # a zeroth-order step is one stream of forwards; DataParallel would only change the batch size
            self._n_gpu = 1

    @property
    def boosts(self) -> bool:
        """Whether the run is XGBLoRA (the default), and neither plain LoRA nor full-parameter training."""
        return not (self.lora or self.full)

    @property
    def rank(self) -> int:
        """The rank in force: always 1 for XGBLoRA; of no meaning with `full`."""
        return 1 if self.boosts else self.lora_r

    @property
    def by_rewards(self) -> bool:
        """Whether a population learns from rewards on texts, and not from a task's objective."""
        return self.trainer == "population" and any((self.reward, self.prompts, self.eval_prompts))

    @property
    def has_rounds(self) -> bool:
        """Whether adapters are trained in rounds that a rule ends; a step of a population is a booster by itself."""
        return self.boosts and self.trainer != "population"

    @property
    def start(self) -> str:
        """How rounds start, or with plain LoRA the one adapter; members start at the weights themselves."""
        if self.trainer == "population":
            return RoundStart().reinit
        return self.xgblora_reinit if self.boosts else self.lora_init

    @property
    def scaling(self) -> float:
        """`alpha / rank`."""
        return scale_of(self.lora_alpha, self.rank)

    @property
    def method(self) -> str:
        """ "xgblora", "lora" or "full"."""
        return "full" if self.full else "lora" if self.lora else "xgblora"

    @property
    def depths(self) -> Depths:
        """The depths of the model at which layers are adapted."""
        return Depths.parse(self.xgblora_layers)

    @property
    def flags_of_optimizer(self) -> dict[str, str]:
        """The flags that the zeroth-order optimizer reads, and what `UpdateRule` calls them."""
        optimizer, flags = self.zo_optimizer, flags_of(self)
        return {name: flag.optimizers[optimizer] for name, flag in flags.items() if optimizer in flag.optimizers}

    @property
    def update_rule(self) -> UpdateRule:
        """The zeroth-order optimizer and its numbers."""
        numbers = {name: getattr(self, flag) for flag, name in self.flags_of_optimizer.items()}
        return UpdateRule(self.zo_optimizer, **numbers)

    @property
    def estimator(self) -> Estimator:
        """What the estimate of a zeroth-order step is."""
        if self.zo_two_sided:
            return TwoSided(self.zo_directions)
        return OneSided(self.zo_directions, self.zo_normalise)

    @property
    def merge_policy(self) -> MergePolicy:
        """The one merge rule in force; none for plain LoRA and full parameters."""
        if self.trainer == "population":
            return MergePolicy("each step", 0)
        return self.merge_policy_of_flags if self.boosts else MergePolicy("none", 0)

    @property
    def merge_policy_of_flags(self) -> MergePolicy:
        """The merge rule that the flags say, whatever the method."""
        rule = AdaptiveRule(**{of.name: getattr(self, f"xgblora_adaptive_{of.name}") for of in fields(AdaptiveRule)})
        return MergePolicy.from_flags(
            steps_per_iteration=self.xgblora_steps_per_iteration,
            merge_frequency=self.xgblora_merge_frequency,
            adaptive=rule if self.xgblora_adaptive_merge else None,
        )

    @property
    def shrinkage(self) -> Shrinkage:
        """How much of an adapter a merge takes."""
        return Shrinkage.from_flag("xgblora_shrinkage", self.xgblora_shrinkage)


# what every flag of `xgblora-train` says of itself
FLAGS = {**flags_of(XGBLoRAArguments), **flags_of(TaskArguments)}
