"""The flags of a run: which model and task, which adapters, when to merge, how to train."""

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from xgblora.adapters.rank1_linear import scale_of
from xgblora.boosting import AdaptiveRule, MergePolicy
from xgblora.boosting.shrinkage import FACTORS, Shrinkage
from xgblora.boosting.starts import REINITS, check_share
from xgblora.errors import InputError, check_not_negative, check_positive
from xgblora.tasks import TASKS
from xgblora.training.idle_flags import idle_flags
from xgblora.zo import Estimator, OneSided, TwoSided, UpdateRule
from xgblora.zo.one_sided import check_normalise
from xgblora.zo.update_rule import check_beta

METHODS = ("xgblora", "lora", "full")
TRAINERS = ("zo", "regular", "none")
# the flags that each zeroth-order optimizer reads, and what `UpdateRule` calls them
NUMBERS_OF_OPTIMIZERS = {
    "sgd": {},
    "momentum": {"zo_momentum": "beta1"},
    "adam": {"adam_beta1": "beta1", "adam_beta2": "beta2", "adam_epsilon": "epsilon"},
    "sign": {},
}
# the flags that make no difference without merges, and what they are then
OF_ROUNDS = {
    "staged_eval": False,
    "load_best_round_at_end": False,
    "early_stopping_rounds": 0,
    "xgblora_adaptive_merge": False,
    "xgblora_reinit": "kaiming",
    "xgblora_shrinkage": "1.0",
    "xgblora_colsample": 1.0,
}

# what only a run with boosting rounds can do, and only with development examples to measure them on
NEED_ROUNDS = ("xgblora_adaptive_merge", "early_stopping_rounds", "load_best_round_at_end", "staged_eval")


def _field(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class TaskArguments:
    """The model and the task."""

    _argument_group_name = "model and task"

    model_name: str | None = _field(None, "Model folder or hub name; without it the package's own small model.")
    task_name: str | None = _field(None, f"Task: {', '.join(TASKS)}; SST2 without it.")
    task_file: str | None = _field(None, "YAML file of a task of your own (docs/tasks.md), instead of --task_name.")
    data_dir: str | None = _field(
        None, "Folder with the task's files as published, such as train.tsv and dev.tsv; without it: the hub."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _field(
        "auto", "Dtype of the base weights; auto: bfloat16 on a GPU that has it and on a CPU with AMX, else float32."
    )
    num_train: int = _field(1000, "Training examples, drawn by seed as MeZO draws them.")
    num_dev: int = _field(500, "Development examples, drawn from the training split after them.")
    num_eval: int | None = _field(None, "Held-out examples of the validation split; all without it.")
    train_set_seed: int | None = _field(None, "Seed that draws the examples; --seed without it.")
    objective: Literal["option_nll", "classification", "language_model", "accuracy", "f1"] = _field(
        "option_nll",
        "What a step minimises: the loss of the right option, the cross-entropy over all candidates, the loss of the "
        "whole right text, 1 - accuracy, or 1 - F1 of generated answers (docs/objectives.md).",
    )
    max_length: int | None = _field(None, "Longest text in tokens; the model's own limit without it.")
    num_demos: int = _field(0, "Demonstrations in front of each question, from the training examples (--trainer none).")
    one_demo_set_per_example: bool = _field(
        False, "Draw demonstrations for each example from the whole training split instead of one set for all."
    )
    sfc: bool = _field(False, "Calibrate scores by those of the candidates without the question (--trainer none).")
    icl_sfc: bool = _field(False, "Calibrate likewise, behind the demonstrations (--trainer none).")
    max_new_tokens: int = _field(50, "Longest generated answer in tokens.")
    save_model: bool = _field(True, "Save the trained model (merged) to OUTPUT_DIR/model.")
    overwrite: bool = _field(False, "Write into an output_dir that holds a run already.")
    dry_run: bool = _field(
        False, "Check everything, show the configuration, the steps, merges and memory to come, and write nothing."
    )


@dataclass
class AdapterArguments:
    """The adapters, boosting and zeroth-order training."""

    trainer: Literal["zo", "regular", "none"] = _field(
        "zo", "zo: forward passes alone; regular: backpropagation (AdamW); none: evaluate zero-shot."
    )
    xgblora: bool = _field(False, "Gradient boosting with rank-1 adapters (the default).")
    lora: bool = _field(False, "Plain LoRA of rank --lora_r instead of boosting.")
    full: bool = _field(
        False,
        "Full-parameter zeroth-order training (MeZO), no adapters; rates are 1e-7 to 1e-5, and an fp32 copy of the "
        "weights lies beside them (4 bytes a parameter).",
    )
    lora_r: int = _field(1, "Rank of plain LoRA; XGBLoRA always uses 1.")
    lora_alpha: float = _field(16.0, "The adapters' scale is lora_alpha / rank.")
    target_modules: list[str] | None = _field(
        None, "Layers to adapt: names, dotted suffixes, or one regular expression; query and value by default."
    )
    xgblora_steps_per_iteration: int = _field(0, "Merge after every N optimizer steps; 0: not by steps.")
    xgblora_merge_frequency: int = _field(
        1, "Merge after every F epochs; 0: not by epochs. Ignored when merging by steps."
    )
    xgblora_adaptive_merge: bool = _field(
        False, "Merge a round's best adapter when the smoothed development loss stops improving (--eval_steps)."
    )
    xgblora_adaptive_ema: float = _field(
        AdaptiveRule.ema, "Decay of the moving average that smooths the development loss; 0: not smoothed."
    )
    xgblora_adaptive_patience: int = _field(
        AdaptiveRule.patience, "Evaluations in a row without improvement after which a round ends."
    )
    xgblora_adaptive_threshold: float = _field(
        AdaptiveRule.threshold,
        "Least improvement of the smoothed loss that counts, relative to the round's lowest (0.001: by 0.1%%).",
    )
    xgblora_adaptive_min_steps: int = _field(AdaptiveRule.min_steps, "Optimizer steps before which no round ends.")
    xgblora_adaptive_max_steps: int = _field(
        AdaptiveRule.max_steps, "Optimizer steps after which a round ends, evaluated there; 0: no limit."
    )
    early_stopping_rounds: int = _field(
        0,
        "End training when K rounds brought no lower development loss, and keep the best round (staged_eval and "
        "load_best_round_at_end are on then); 0: never.",
    )
    xgblora_reinit: Literal[tuple(REINITS)] = _field(
        "kaiming", "How a round's adapter starts, from the second round on (docs/boosting.md)."
    )
    xgblora_shrinkage: str = _field(
        "1.0",
        "Factor on the scale of a booster when it is merged, above 0 and at most 1 (XGBoost's eta); line_search: that "
        f"of {', '.join(map(str, FACTORS))} with the lowest development loss.",
    )
    xgblora_colsample: float = _field(1.0, "Share of the layers that a round trains, drawn for every round; 1.0: all.")
    rounding: Literal["remainder", "stochastic", "nearest"] = _field(
        "remainder", "How merges round into 16-bit weights; remainder loses nothing."
    )
    staged_eval: bool = _field(False, "Evaluate on the development set after every merge, and plot it by round.")
    load_best_round_at_end: bool = _field(
        False, "Go back to the round with the lowest development loss when training ends (evaluates every round)."
    )
    zo_eps: float = _field(1e-3, "Size of the zeroth-order perturbation.")
    zo_directions: int = _field(1, "Random directions a step.")
    zo_pairing: Literal["auto", "paired", "sequential"] = _field(
        "auto", "paired: both signs and all directions in one forward; sequential: one after the other."
    )
    zo_capture: Literal["auto", "never"] = _field(
        "auto", "auto: on a GPU the step is captured as CUDA graphs, one a batch shape; never: it is not."
    )
    zo_distribution: Literal["gaussian", "rademacher"] = _field("gaussian", "Distribution of the directions.")
    zo_two_sided: bool = _field(
        True, "Losses on both sides of the weights (2 forwards a direction); false: on one side, and one without noise."
    )
    zo_normalise: bool = _field(
        False,
        "Divide one-sided estimates by the standard deviation of their losses (FZOO); rates are smaller by zo_eps.",
    )
    zo_optimizer: Literal["sgd", "momentum", "adam", "sign"] = _field(
        "sgd", "What steps along the estimate; adam reads --adam_beta1, --adam_beta2 and --adam_epsilon."
    )
    zo_momentum: float = _field(0.9, "Decay of the first moment with --zo_optimizer momentum.")


def is_of_adapters(flag: str) -> bool:
    """Whether `flag` is of adapters or of boosting: full-parameter training has neither."""
    others = ("target_modules", "rounding", *NEED_ROUNDS)
    return flag.startswith(("lora_", "xgblora_")) or flag in others


@dataclass
class XGBLoRAArguments(TrainingArguments, AdapterArguments):
    """`transformers.TrainingArguments` with the adapters, the merge policy and zeroth-order training.

    Defaults that differ from transformers': batches of 16, a constant learning rate of 1e-4, losses logged every 10
    steps and not filtered, checkpoints and reports off, seed 0.

    Raises:
        InputError: an argument is out of range, or two contradict each other.
    """

    _argument_group_name = "adapters, merging and training"

    output_dir: str | None = _field(None, "Folder of the run; runs/<model>-<task>-<method>-... without it.")
    learning_rate: float = _field(1e-4, "Learning rate.")
    lr_scheduler_type: str = _field("constant", "Schedule of the learning rate.")
    per_device_train_batch_size: int = _field(16, "Training examples a step.")
    per_device_eval_batch_size: int = _field(32, "Examples of an evaluation batch.")
    max_steps: int = _field(-1, "Optimizer steps; -1: as many as num_train_epochs has.")
    logging_steps: float = _field(10, "Steps between log entries.")
    logging_nan_inf_filter: bool = _field(False, "Hide losses that are not finite.")
    eval_strategy: str = _field("steps", "When to evaluate on the development set: no, steps or epoch.")
    eval_steps: float | None = _field(100, "Steps between evaluations on the development set.")
    save_strategy: str = _field("no", "When to write checkpoints: no, steps or epoch.")
    # in this order, because HfArgumentParser takes the second alternative for the type of the flag
    report_to: None | str | list[str] = _field("none", "Where else to report: tensorboard, wandb, ...")
    remove_unused_columns: bool = _field(False, "Leave batches as the collator makes them.")
    resume_from_checkpoint: str | None = _field(
        None, "Checkpoint folder to go on from; last: the newest whole one in output_dir, or a new run without one."
    )
    seed: int = _field(0, "Seed of everything: examples, order, adapters, directions.")

    def __post_init__(self):
        if self.shrinkage.factor is not None:
            # one spelling: a checkpoint compares it
            self.xgblora_shrinkage = str(self.shrinkage.factor)
        self.check()
        # transformers fills in a folder of its own
        self.names_its_folder = self.output_dir is not None
        self.load_best_round_at_end = self.load_best_round_at_end or self.early_stopping_rounds > 0
        self.staged_eval = self.staged_eval or self.load_best_round_at_end
        if self.full:
            # a weight has one value at a time
            self.zo_pairing = "sequential"
        # before transformers and the lines below fill in values of their own
        self.idle_flags = idle_flags(self) if self.trainer == "zo" else ()
        super().__post_init__()
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type == "cuda"
        if self.trainer == "zo":
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
    def scaling(self) -> float:
        """`alpha / rank`."""
        return scale_of(self.lora_alpha, self.rank)

    @property
    def method(self) -> str:
        """ "xgblora", "lora" or "full"."""
        return "full" if self.full else "lora" if self.lora else "xgblora"

    @property
    def update_rule(self) -> UpdateRule:
        """The zeroth-order optimizer and its numbers."""
        numbers = NUMBERS_OF_OPTIMIZERS[self.zo_optimizer]
        return UpdateRule(self.zo_optimizer, **{name: getattr(self, flag) for flag, name in numbers.items()})

    @property
    def estimator(self) -> Estimator:
        """What the estimate of a zeroth-order step is."""
        if self.zo_two_sided:
            return TwoSided(self.zo_directions)
        return OneSided(self.zo_directions, self.zo_normalise)

    @property
    def merge_policy(self) -> MergePolicy:
        """The one merge rule in force; none for plain LoRA and full parameters."""
        if not self.boosts:
            return MergePolicy("none", 0)
        return self._policy_of_the_flags()

    @property
    def shrinkage(self) -> Shrinkage:
        """How much of an adapter a merge takes."""
        return Shrinkage.from_flag("xgblora_shrinkage", self.xgblora_shrinkage)

    def check(self) -> None:
        """Raise InputError if a flag is out of range or two contradict each other."""
        if self.trainer not in TRAINERS:
            raise InputError(f"trainer={self.trainer}: must be one of {', '.join(TRAINERS)}")
        given = [name for name in METHODS if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"--{given[0]} and --{given[1]}: choose one of them")
        if self.full:
            self._check_full()
        scale_of(self.lora_alpha, self.lora_r)
        self._check_rounds()
        check_positive("zo_eps", self.zo_eps)
        for name in ("learning_rate", "weight_decay", "warmup_steps"):
            check_not_negative(name, getattr(self, name))
        if self.trainer == "zo" and (self.bf16 or self.fp16):
            name, dtype = ("bf16", "bfloat16") if self.bf16 else ("fp16", "float16")
            raise InputError(f"{name}=True: is for backpropagation; a zeroth-order run takes --dtype {dtype}")
        if self.zo_optimizer not in NUMBERS_OF_OPTIMIZERS:
            raise InputError(f"zo_optimizer={self.zo_optimizer}: must be one of {', '.join(NUMBERS_OF_OPTIMIZERS)}")
        if self.trainer == "zo":
            for flag, name in NUMBERS_OF_OPTIMIZERS[self.zo_optimizer].items():
                (check_positive if name == "epsilon" else check_beta)(flag, getattr(self, flag))
        if self.zo_directions < 1:
            raise InputError(f"zo_directions={self.zo_directions}: must be 1 or more")
        check_normalise("zo_normalise", self.zo_normalise, self.zo_two_sided, self.zo_directions)
        if self.max_steps == 0 or self.max_steps < -1:
            raise InputError(f"max_steps={self.max_steps}: must be 1 or more, or -1 to train num_train_epochs epochs")
        check_positive("num_train_epochs", self.num_train_epochs)
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: must be 1 or more")
        for name in ("logging_steps", "eval_steps"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        for name in ("deepspeed", "fsdp"):
            if getattr(self, name):
                raise InputError(f"{name}={getattr(self, name)}: the adapters train on one device; leave it out")
        if self.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
            raise InputError(
                f"train_sampling_strategy={self.train_sampling_strategy}: goes by lengths that the examples do not "
                "have; give random or sequential"
            )
        check_report_to(self.report_to)
        if not 0 <= self.seed < 1 << 32:
            raise InputError(f"seed={self.seed}: must be from 0 to 4294967295")

    def _check_full(self) -> None:
        if self.trainer == "regular":
            raise InputError(
                "full=True: is for forward passes alone; backpropagation trains adapters, give --trainer zo"
            )
        for name, flag in AdapterArguments.__dataclass_fields__.items():
            if is_of_adapters(name) and getattr(self, name) != flag.default:
                raise InputError(
                    f"{name}={getattr(self, name)}: --full trains without adapters and rounds; leave it out"
                )
        if self.zo_pairing == "paired":
            raise InputError("zo_pairing=paired: --full holds one sign of the weights at a time; leave it out")

    def _check_rounds(self) -> None:
        policy = self._policy_of_the_flags()
        for name, default in OF_ROUNDS.items():
            if self.lora and getattr(self, name) != default:
                raise InputError(f"{name}={getattr(self, name)}: plain LoRA has no rounds; use --xgblora")
        if self.xgblora_reinit not in REINITS:
            raise InputError(f"xgblora_reinit={self.xgblora_reinit}: must be one of {', '.join(REINITS)}")
        check_share("xgblora_colsample", self.xgblora_colsample)
        if self.shrinkage != Shrinkage() and not REINITS[self.xgblora_reinit].starts_at_zero:
            raise InputError(
                f"xgblora_reinit={self.xgblora_reinit}: the base takes back all that a round started with; use "
                "--xgblora_shrinkage 1.0"
            )
        if self.shrinkage != Shrinkage() and self.xgblora_adaptive_merge:
            raise InputError(
                "xgblora_adaptive_merge=True: goes by the losses of adapters that are merged whole; use "
                "--xgblora_shrinkage 1.0"
            )
        if self.xgblora_adaptive_merge and self.eval_strategy != "steps":
            raise InputError(
                f"xgblora_adaptive_merge=True: needs --eval_strategy steps and --eval_steps, not {self.eval_strategy}"
            )
        if self.early_stopping_rounds < 0:
            raise InputError(f"early_stopping_rounds={self.early_stopping_rounds}: must be 0 or more")
        if self.early_stopping_rounds and policy.rule == "none":
            raise InputError(
                f"early_stopping_rounds={self.early_stopping_rounds}: there are no rounds without merges; give "
                "--xgblora_steps_per_iteration, --xgblora_merge_frequency or --xgblora_adaptive_merge"
            )
        for name in ("early_stopping_rounds", "load_best_round_at_end"):
            if getattr(self, name) and self.load_best_model_at_end:
                raise InputError(f"--{name} and --load_best_model_at_end: choose one of them")

    def _policy_of_the_flags(self) -> MergePolicy:
        adaptive = AdaptiveRule(
            ema=self.xgblora_adaptive_ema,
            patience=self.xgblora_adaptive_patience,
            threshold=self.xgblora_adaptive_threshold,
            min_steps=self.xgblora_adaptive_min_steps,
            max_steps=self.xgblora_adaptive_max_steps,
        )
        return MergePolicy.from_flags(
            steps_per_iteration=self.xgblora_steps_per_iteration,
            merge_frequency=self.xgblora_merge_frequency,
            adaptive=adaptive if self.xgblora_adaptive_merge else None,
        )


def check_report_to(report_to: None | str | list[str]) -> None:
    """Raise InputError if it names something that transformers does not report to, or that is not installed."""
    names = [report_to] if isinstance(report_to, str) else report_to or []
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(f"report_to={name}: must be none, all, or of {', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
        if name not in get_available_reporting_integrations():
            raise InputError(f"report_to={name}: is not installed")
