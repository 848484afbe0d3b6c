"""Training: the flags, and transformers' `Trainer` over what is trained."""

from xgblora.training.arguments import TaskArguments, XGBLoRAArguments
from xgblora.training.trainer import XGBLoRATrainer

__all__ = ["TaskArguments", "XGBLoRAArguments", "XGBLoRATrainer"]
