"""Training: flags, objectives, the trainer on transformers' `Trainer`, and whole runs."""

from xgblora.training.arguments import TaskArguments, XGBLoRAArguments
from xgblora.training.trainer import XGBLoRATrainer

__all__ = ["TaskArguments", "XGBLoRAArguments", "XGBLoRATrainer"]
