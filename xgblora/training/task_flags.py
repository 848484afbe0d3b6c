"""The flags of model and task."""

from dataclasses import dataclass
from typing import Literal

from xgblora.tasks import TASKS
from xgblora.training.flag import Decides, declare


@dataclass
class TaskArguments:
    """The model and the task."""

    _argument_group_name = "model and task"

    recipe: str | None = declare(
        None,
        "Flags under one name, each a default that others override; boost: the boosting that pays (docs/boosting.md).",
        Decides.NOTHING,
    )
    model_name: str | None = declare(
        None, "Model folder or hub name; without it the package's own small model.", Decides.ORIGIN
    )
    task_name: str | None = declare(None, f"Task: {', '.join(TASKS)}; SST2 without it.", Decides.TASK)
    task_file: str | None = declare(
        None, "YAML file of a task of your own (docs/tasks.md), instead of --task_name.", Decides.EXAMPLES
    )
    data_dir: str | None = declare(
        None,
        "Folder with the task's files as published, such as train.tsv and dev.tsv; without it: the hub.",
        Decides.EXAMPLES,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = declare(
        "auto",
        "Dtype of the base weights; auto: bfloat16 on a GPU that has it and on a CPU with AMX, else float32; of a "
        "quantised model the dtype that it was saved in.",
        Decides.ORIGIN,
    )
    device_map: Literal["none", "auto", "balanced", "balanced_low_0", "sequential"] = declare(
        "none",
        "How a model that does not fit one device is spread over all of them, as accelerate names it; none: it is not "
        "(docs/scaling.md).",
        Decides.PASSING,
    )
    trust_remote_code: bool = declare(
        False, "Let code that comes with the model run on this machine.", Decides.ORIGIN, shown=False
    )
    head: bool = declare(
        False,
        "Classify by a head on the model, trained with it, instead of by label words (docs/models.md).",
        Decides.TASK,
    )
    num_train: int = declare(1000, "Training examples, drawn by seed as MeZO draws them.", Decides.TASK)
    num_dev: int = declare(500, "Development examples, drawn from the training split after them.", Decides.TASK)
    num_eval: int | None = declare(None, "Held-out examples of the validation split; all without it.", Decides.PASSING)
    train_set_seed: int | None = declare(None, "Seed that draws the examples; --seed without it.", Decides.TASK)
    objective: Literal["option_nll", "classification", "language_model", "accuracy", "f1"] = declare(
        "option_nll",
        "What a step minimises: the loss of the right option, the cross-entropy over all candidates, the loss of the "
        "whole right text, 1 - accuracy, or 1 - F1 of generated answers (docs/objectives.md).",
        Decides.TASK,
    )
    max_length: int | None = declare(None, "Longest text in tokens; the model's own limit without it.", Decides.TASK)
    num_demos: int = declare(
        0,
        "Demonstrations in front of each question, from the training examples (--trainer none).",
        Decides.PASSING,
    )
    one_demo_set_per_example: bool = declare(
        False,
        "Draw demonstrations for each example from the whole training split instead of one set for all.",
        Decides.PASSING,
    )
    sfc: bool = declare(
        False, "Calibrate scores by those of the candidates without the question (--trainer none).", Decides.PASSING
    )
    icl_sfc: bool = declare(False, "Calibrate likewise, behind the demonstrations (--trainer none).", Decides.PASSING)
    max_new_tokens: int = declare(50, "Longest generated answer or completion in tokens.", Decides.ANSWERS)
    save_model: bool = declare(True, "Save the trained model (merged) to OUTPUT_DIR/model.", Decides.NOTHING)
    overwrite: bool = declare(
        False,
        "Write into an output_dir that holds a run already.",
        Decides.NOTHING,
        in_comparison="use --skip_completed false",
    )
    dry_run: bool = declare(
        False, "Check everything, show the steps, merges and memory to come, and write nothing.", Decides.NOTHING
    )
