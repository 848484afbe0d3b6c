"""`XGBLoRATrainer`: transformers' `Trainer` over adapters, by forward passes alone or by backpropagation."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from xgblora.adapters import AdapterSet, attach
from xgblora.boosting import Booster
from xgblora.training import checkpoint
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.callbacks import MergeCallback, RoundProgress, RunFilesCallback
from xgblora.training.objective import CandidateObjective, model_loss
from xgblora.training.run_folder import RunFolder
from xgblora.training.zero_order_optimizer import ZeroOrderOptimizer
from xgblora.zo import ZeroOrder


class XGBLoRATrainer(Trainer):
    """Train the adapters of a model; callbacks, schedulers, logging, evaluation and checkpoints are transformers'.

    Args:
        model: the base model; adapters are attached as `args` say unless `adapters` is given.
        args: the flags.
        objective: `(model, batch) -> losses`; None uses the model's own loss.
        adapters: what `xgblora.attach(model, ...)` returned, if it was called already.
        kwargs: everything else that `transformers.Trainer` takes.

    Attributes:
        adapters: the adapters in training.
        booster: merges and records; None for plain LoRA.
        zo: the zeroth-order estimator; None with `trainer="regular"`.
        steps_taken: optimizer steps of this process, those before a resumed checkpoint not among them.
    """

    def __init__(
        self,
        model: nn.Module,
        args: XGBLoRAArguments,
        *,
        objective: Callable[[nn.Module, dict], Tensor] | None = None,
        adapters: AdapterSet | None = None,
        **kwargs,
    ):
        self.adapters = adapters or attach(
            model, _targets(args.target_modules), alpha=args.lora_alpha, rank=args.rank, seed=args.seed
        )
        self.objective = objective or model_loss
        self.booster = Booster(self.adapters, rounding=args.rounding) if args.boosts else None
        self.policy = args.merge_policy
        self.steps_taken = 0
        if args.resume_from_checkpoint:
            # now, and not when training begins: nothing is written yet
            checkpoint.check(Path(args.resume_from_checkpoint), self.adapters, _identity(args))
        self._losses_of_steps: list[Tensor] = []
        self._loss_of_step: Tensor | None = None
        super().__init__(model=model, args=args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.zo = _zero_order(self.adapters, self.objective, args) if args.trainer == "zo" else None
        self._forward_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._set_callbacks()

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch=None) -> Tensor:
        """One batch: the losses of both signs, or a forward and a backward. The optimizer step is a call of its own."""
        if self.zo is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            # the directions follow from the step, so a resumed run draws what the first would have drawn
            self.zo.step_index = self.state.global_step
            weight = 1.0 / self.current_gradient_accumulation_steps
            loss = self.zo.estimate(self._prepare_inputs(inputs), weight=weight) * weight
        self._loss_of_step = loss if self._loss_of_step is None else self._loss_of_step + loss
        if self.accelerator.sync_gradients:
            self._losses_of_steps.append(self._loss_of_step)
            self._loss_of_step = None
            self.steps_taken += 1
        return loss

    def _run_epoch(self, *args, **kwargs):
        # transformers would take one step more when a run is resumed from its last checkpoint
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        """The mean of the objective's losses."""
        loss = self.objective(model, inputs).mean()
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()
    def prediction_step(self, model: nn.Module, inputs: dict, prediction_loss_only: bool, ignore_keys=None):
        """Loss, scores [B, C] and labels [B] of a batch; the loss alone for an objective without candidates."""
        inputs = self._prepare_inputs(inputs)
        if not isinstance(self.objective, CandidateObjective):
            return self.objective(model, inputs).mean(), None, None
        scores = self.objective.scores(model, inputs)
        return self.objective.losses(scores, inputs["label"]).mean(), scores, inputs["label"]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The zeroth-order optimizer, or transformers' choice over the adapters' parameters."""
        if self.zo is None:
            return super().create_optimizer(model)
        if self.optimizer is None:
            self.optimizer = ZeroOrderOptimizer(self.zo, self.args.learning_rate)
        return self.optimizer

    def floating_point_ops(self, inputs: dict) -> int:
        """2 FLOP a parameter and token for a forward: 2q forwards by zeroth order, 3 for a forward and a backward."""
        tokens = inputs["input_ids"].numel() if "input_ids" in inputs else 0
        forwards = 2 * self.args.zo_directions if self.zo is not None else 3
        return 2 * forwards * tokens * self._forward_parameters

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(folder, self.adapters, self.booster, _identity(self.args))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint.load(Path(resume_from_checkpoint), self.adapters, self.booster, _identity(self.args))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _set_callbacks(self) -> None:
        # first of all callbacks, so that every other one sees the state after the merge
        if self.booster is not None:
            self.callback_handler.callbacks.insert(0, MergeCallback(self.booster, self.policy))
        if self.args.output_dir:
            folder = RunFolder(Path(self.args.output_dir))
            self.add_callback(RunFilesCallback(folder, self._losses_of_steps, self.booster, self.policy))
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(RoundProgress(self.booster))
        self.pop_callback(PrinterCallback)


def _zero_order(adapters: AdapterSet, objective: Callable, args: XGBLoRAArguments) -> ZeroOrder:
    return ZeroOrder(
        adapters,
        objective,
        eps=args.zo_eps,
        lr=args.learning_rate,
        directions=args.zo_directions,
        pairing=args.zo_pairing,
        seed=args.seed,
        weight_decay=args.weight_decay,
        distribution=args.zo_distribution,
    )


def _identity(args: XGBLoRAArguments) -> dict:
    """What of the flags a checkpoint must share with the run that goes on from it."""
    return {"method": args.method, "trainer": args.trainer}


def _targets(target_modules: list[str] | None) -> str | list[str] | None:
    """One entry may be a regular expression, several are names."""
    return target_modules[0] if target_modules and len(target_modules) == 1 else target_modules
