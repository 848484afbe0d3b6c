"""What `--report_to` gets of a run by rewards: no loop of transformers calls its callbacks there, so this does."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import DefaultFlowCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler

from xgblora.training.arguments import XGBLoRAArguments


class ReportRewards:
    """Hands numbers of a run to what its flags name; they are shown as those of a training loop are.

    Args:
        args: the flags.
        model, tokenizer: what is trained, which some places keep facts of.
        steps, first: of the whole run, and the one that this process began after.
    """

    def __init__(self, args: XGBLoRAArguments, model: nn.Module, tokenizer: Any, *, steps: int, first: int):
        reporters: list[type[TrainerCallback]] = get_reporting_integration_callbacks(args.report_to)
        # transformers warns where the first one is missing; it acts at the end of steps alone
        self._handler = CallbackHandler([DefaultFlowCallback, *reporters], model, tokenizer, None, None)
        self._args, self._control = args, TrainerControl()
        self._state = TrainerState(global_step=first, max_steps=steps)
        self._handler.on_init_end(self._args, self._state, self._control)
        self._handler.on_train_begin(self._args, self._state, self._control)

    def step(self, number: int, values: Mapping[str, float]) -> None:
        """Report what step `number` came to, as numbers of training."""
        self._log(number, values)

    def held_out(self, number: int, values: Mapping[str, float]) -> None:
        """Report what held-out prompts give after step `number`, as numbers of an evaluation."""
        self._log(number, {f"eval_{name}": value for name, value in values.items()})

    def end(self) -> None:
        """Say that the run has ended."""
        self._handler.on_train_end(self._args, self._state, self._control)

    def _log(self, number: int, values: Mapping[str, float]) -> None:
        self._state.global_step = number
        self._handler.on_log(self._args, self._state, self._control, dict(values))
