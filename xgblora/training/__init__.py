"""Training: the flags, and transformers' `Trainer` over what is trained."""

from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.task_flags import TaskArguments
from xgblora.training.trainer import XGBLoRATrainer

__all__ = ["TaskArguments", "XGBLoRAArguments", "XGBLoRATrainer"]
