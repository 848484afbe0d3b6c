"""`XGBLoRATrainer`: transformers' `Trainer` over adapters, by forward passes alone or by backpropagation."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from xgblora.adapters import Trainable
from xgblora.atomic_file import replacing_folder
from xgblora.boosting import AdaptiveMerging, MergePolicy
from xgblora.boosting.early_stopping import has_stalled
from xgblora.objectives.texts import ChoosingObjective, model_loss
from xgblora.records import checkpoint
from xgblora.records.run_files import RunFilesCallback
from xgblora.records.run_folder import RunFolder
from xgblora.replaying import start_tape
from xgblora.scoring.packing import positions_of
from xgblora.training import processes
from xgblora.training.advice import Advise
from xgblora.training.agreement import Agreement, agree_on, facts_of
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.best_round import keep_best_round
from xgblora.training.callbacks import LateCheckpoint, MergeCallback
from xgblora.training.check_flags import check_batches, check_development_set, refuse_rewards
from xgblora.training.from_flags import booster_of, forward_step_of, hard_examples_of, trainable_of
from xgblora.training.hard_examples import weighing
from xgblora.training.process_trainer import ProcessTrainer
from xgblora.training.progress import ShowProgress
from xgblora.training.quantised import adapters_are_known
from xgblora.training.remembered_trunk import RememberedTrunk, identity_of_trunk, remembered_trunk
from xgblora.training.round_samples import samples_of
from xgblora.training.run_identity import identity_of_flags
from xgblora.training.signals import ReportSignals
from xgblora.training.zero_order_optimizer import ZeroOrderOptimizer, without_gradients

logger = logging.getLogger("xgblora")


class XGBLoRATrainer(ProcessTrainer):
    """Train the adapters of a model; callbacks, schedulers, logging, evaluation and checkpoints are transformers'.

    Args:
        model: the base model; adapters are attached as `args` say unless `adapters` is given.
        args: the flags.
        objective: `(model, batch) -> losses`; None uses the model's own loss.
        adapters: what `xgblora.attach(model, ...)` returned, or `xgblora.FullParameters(model)`, if made already.
        identity: what decides the run beside `args`, such as the data and the objective: name -> JSON value. A
            checkpoint says it, and is refused by a run that says something else.
        kwargs: everything else that `transformers.Trainer` takes.

    Attributes:
        adapters: what is trained: adapters, or with `full=True` all parameters.
        booster: merges and records; for plain LoRA it has nothing to do before training ends, for full parameters
            nothing at all.
        zo: what steps by forward passes alone, a `ZeroOrder` or a `PopulationStep`; None with `trainer="regular"`.
        hard: what draws the batches with `xgblora_hard_examples`; None without.
        tape: what the zeroth-order run decided; None with the other trainers.
        trunk: what is remembered below the adapters; None where nothing is.
        best_round: the round that `load_best_round_at_end` kept; None before.
        steps_taken: optimizer steps of this process, those before a resumed checkpoint not among them.
    """

    def __init__(
        self,
        model: nn.Module,
        args: XGBLoRAArguments,
        *,
        objective: Callable[[nn.Module, dict], Tensor] | None = None,
        adapters: Trainable | None = None,
        identity: Mapping[str, Any] | None = None,
        **kwargs,
    ):
        processes.check_processes(args)
        refuse_rewards(args)
        self.group = processes.group_of(args)
        self.adapters = adapters or trainable_of(model, args)
        self.objective = objective or model_loss
        self.booster = booster_of(self.adapters, args)
        self.policy = args.merge_policy
        self._adaptive = AdaptiveMerging(self.booster, self.policy.adaptive) if self.policy.adaptive else None
        self.steps_taken = 0
        self.best_round: int | None = None
        self._staging: Path | None = None
        self._resumed: Path | None = None
        self._run_files, self._agreement = None, None
        self._unlogged: dict | None = None
        self._identity = {
            **identity_of_flags(args),
            **identity_of_trunk(self.adapters, args),
            **(identity or {}),
            **_identity_of_size(kwargs.get("train_dataset")),
        }
        if args.resume_from_checkpoint:
            # now, and not when training begins: nothing is written yet
            self._check_checkpoint(args.resume_from_checkpoint)
        if hasattr(kwargs.get("train_dataset"), "__len__"):
            check_batches(args, len(kwargs["train_dataset"]))
        self._loss_of_step: Tensor | None = None
        self.trunk: RememberedTrunk | None = None
        with adapters_are_known(model):
            super().__init__(model=model, args=args, **kwargs)
        check_development_set(args, self.eval_dataset)
        self.model_accepts_loss_kwargs = False
        self.hard = hard_examples_of(self.train_dataset, args)
        objective = self.objective if self.hard is None else weighing(self.objective)
        exchange = processes.exchange_of(args, self.group)
        self.zo = forward_step_of(self.booster, objective, args, exchange, lambda: self.state.max_steps)
        self.tape = start_tape(self.zo, self.booster) if args.trainer == "zo" else None
        first = self.adapters.first_block(in_use=False) if self.tape is not None else ""
        self.trunk = remembered_trunk(self, self.objective, first)
        self._forward_parameters = sum(parameter.numel() for parameter in model.parameters())
        if self.booster.start.measures:
            self.booster.samples = samples_of(self, self.objective)
        self._set_callbacks()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Train, and afterwards keep the best round if the flags say so; arguments as of `transformers.Trainer.train`.

        Raises:
            InputError: the checkpoint is torn, was changed, or is of another run.
        """
        self.agree()
        folder = Path(self.args.output_dir)
        if processes.writes(self.args):
            checkpoint.remove_leftovers_in(folder)
        resume_from_checkpoint = self.checkpoint_to_go_on_from(resume_from_checkpoint)
        if resume_from_checkpoint:
            manifest = self._check_checkpoint(resume_from_checkpoint)
            self._unlogged = manifest["unlogged"]
            self._resumed = Path(resume_from_checkpoint)
            checkpoint.refuse_newer(folder, manifest["step"])
        self._forget_interrupted_step()
        with without_gradients(self.model) if self.zo is not None else nullcontext():
            output = super().train(str(resume_from_checkpoint) if resume_from_checkpoint else None, **kwargs)
        if self.args.load_best_round_at_end:
            self.best_round = keep_best_round(self)
            if self._run_files is not None:
                self._run_files.rewrite_tape()
        if self.trunk is not None:
            self.trunk.forget()
        return output

    def agree(self) -> None:
        """Let the processes of the run meet, and see that they have the same flags, examples and base model.

        Raises:
            InputError: one has others; the first process says which, the message of all others is empty.
        """
        if self.group is not None:
            agree_on(self.group, facts_of(self.args, self._identity, self.adapters.origin))

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch=None) -> Tensor:
        """One batch: the losses of both signs, or a forward and a backward. The optimizer step is a call of its own."""
        if self.zo is None:
            loss = self.mean_over_processes(super().training_step(model, inputs, num_items_in_batch))
        else:
            # the directions follow from the step, so a resumed run draws what the first would have drawn
            self.zo.step_index = self.state.global_step
            weight = 1.0 / self.current_gradient_accumulation_steps
            inputs = self._prepare_inputs(inputs if self.hard is None else self.hard.weighted(inputs))
            # of a model on several devices it may come from another one
            loss = (self.zo.estimate(inputs, weight=weight) * weight).to(self.args.device)
            if self.hard is not None:
                self.hard.see(self.zo.example_losses, inputs, self.booster.round)
        self._loss_of_step = loss if self._loss_of_step is None else self._loss_of_step + loss
        if self.accelerator.sync_gradients:
            if self._run_files is not None:
                self._run_files.add_loss(self._loss_of_step)
            self._loss_of_step = None
            self.steps_taken += 1
        return loss

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        return self.hard or super()._get_train_sampler(train_dataset)

    def _prepare_inputs(self, inputs: dict) -> dict:
        return super()._prepare_inputs(inputs if self.trunk is None else self.trunk.add_to(inputs))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        # what transformers would find among all parameters in every step, 0.6 ms of the demonstration's 35
        return super()._get_grad_norm(model, grad_norm) if self.zo is None else 0.0

    def _init_training_state(self, *args, **kwargs):
        # transformers warns where a checkpoint's run logged, evaluated or saved at other steps, and goes on at those
        with _silenced("transformers.trainer_utils"):
            begun = super()._init_training_state(*args, **kwargs)
        self.state.compute_steps(self.args, self.state.max_steps)
        # the state names the best checkpoint by the place where it was written; the run may have been moved, and the
        # state may be anybody's
        if self.state.best_global_step:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            places = [Path(self.args.output_dir) / name, *([self._resumed.parent / name] if self._resumed else [])]
            self.state.best_model_checkpoint = next((str(place) for place in places if place.is_dir()), None)
        return begun

    def _run_epoch(self, *args, **kwargs):
        # transformers would take one step more when a run is resumed from its last checkpoint, and knows nothing of one
        # that stopped early
        stalled = has_stalled(self.booster.boosters, self.args.early_stopping_rounds)
        if self.state.global_step >= self.state.max_steps or stalled:
            self.control.should_training_stop = True
        else:
            if self.state.global_step == 0 and self.hard is not None:
                self.hard.forget()
            if self.state.global_step == 0 and self._adaptive is not None:
                # what the first round starts from
                self.booster.begin()
                self.evaluate()
            self._take_up_unlogged_losses()
            super()._run_epoch(*args, **kwargs)

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler: bool = False) -> dict[str, float]:
        # transformers evaluates a run that goes on at its start too (eval_on_start): there the whole one does not
        late = skip_scheduler and self.state.global_step > 0
        return {} if late else super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    @torch.no_grad()
    def prediction_step(self, model: nn.Module, inputs: dict, prediction_loss_only: bool, ignore_keys=None):
        """Loss, chosen candidates [B] and labels [B] of a batch; the loss alone unless it is a `ChoosingObjective`.

        Not the scores: batches have different numbers of candidates, and transformers would fill them up with -100,
        which is more than a score may be.
        """
        inputs = self._prepare_inputs(inputs)
        if not isinstance(self.objective, ChoosingObjective):
            return self.objective(model, inputs).mean(), None, None
        losses, chosen = self.objective.losses_and_choices(model, inputs)
        return losses.mean(), chosen, inputs["label"]

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean loss over the development set as the model is now; unlike `evaluate` no log entry, no callback."""
        training, total, examples = self.model.training, 0.0, 0
        self.model.eval()
        for batch in self.get_eval_dataloader():
            loss, *_ = self.prediction_step(self.model, batch, prediction_loss_only=True)
            losses, count = self.sum_of_losses(loss, find_batch_size(batch))
            total, examples = total + losses, examples + count
        self.model.train(training)
        return self.agreed(total / examples)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The zeroth-order optimizer, or transformers' choice over the adapters' parameters."""
        if self.zo is None:
            return super().create_optimizer(model)
        if self.optimizer is None:
            self.optimizer = ZeroOrderOptimizer(self.zo, self.args.learning_rate, self.objective)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """transformers' scheduler; of a zeroth-order run it drives the optimizer without accelerate's wrapper."""
        if self.zo is not None:
            # which has nothing to scale, and looks for an optional package on the disk twice a step: 0.6 ms of the
            # demonstration's 35
            self.optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return super().create_scheduler(num_training_steps, optimizer)

    def floating_point_ops(self, inputs: dict) -> int:
        """2 FLOP a parameter and token for a forward; a forward and a backward count as 3."""
        tokens = positions_of(inputs) if "input_ids" in inputs else 0
        forwards = self.zo.forwards if self.zo is not None else 3
        return 2 * forwards * tokens * self._forward_parameters

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """transformers' checkpoint, but whole or not there: written beside its place, sealed, synced and renamed."""
        if self._agreement is not None:
            self._agreement.check(self.state.global_step)
        self.gather_random_states()
        if not processes.writes(self.args):
            # it takes all processes
            self.store_flos()
            return
        run_dir = Path(super()._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self._run_files is not None:
            self._run_files.before_checkpoint(self.state)
        with replacing_folder(run_dir / name) as staging:
            self._staging = staging
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            written = staging / name
            self._name_best_checkpoint(run_dir)
            self.state.save_to_json(str(written / TRAINER_STATE_NAME))
            for path in written.iterdir():
                os.replace(path, staging / path.name)
            written.rmdir()
            checkpoint.seal(
                staging,
                self.adapters.origin,
                step=self.state.global_step,
                epoch=self.state.epoch,
                run=self._identity,
                unlogged={"loss": self._tr_loss.item(), "last_logged_step": self._globalstep_last_logged},
            )
        rotate_checkpoints(
            output_dir=str(run_dir),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            # by step: removing half of a folder makes it the most recent one
            use_mtime=False,
        )

    def _take_up_unlogged_losses(self) -> None:
        """Let the first log entry after a checkpoint be the mean that it would have been in the run that wrote it."""
        if self._unlogged is not None:
            self._tr_loss.fill_(self._unlogged["loss"])
            self._globalstep_last_logged = self._unlogged["last_logged_step"]
            # transformers' own mean over this process's steps is without them
            self._total_loss_scalar -= self._unlogged["loss"]
            self._unlogged = None

    def _forget_interrupted_step(self) -> None:
        """Drop what an earlier `train` of this process left when it was interrupted."""
        self._loss_of_step = None
        if self.zo is not None:
            self.zo.abandon_step()

    def _name_best_checkpoint(self, run_dir: Path) -> None:
        # transformers looks for it where it writes, which is not where it will be
        best = self.state.best_global_step
        folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{best}"
        if best and (best == self.state.global_step or folder.exists()):
            self.state.best_model_checkpoint = str(folder)

    def _get_output_dir(self, trial) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if processes.writes(self.args):
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.save(folder, self.adapters, self.booster, self._adaptive, self.hard)

    def _check_checkpoint(self, folder: str | Path) -> dict:
        return checkpoint.check(Path(folder), self.adapters.origin, self._identity)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint.load(Path(resume_from_checkpoint), self.adapters, self.booster, self._adaptive, self.hard)
        if self.tape is not None:
            self.zo.skipped_steps.fill_(self.tape.skipped_steps())
        elif self.zo is not None:
            # steps that changed nothing are in no ledger
            self.zo.step_index = checkpoint.verified_manifest(Path(resume_from_checkpoint))["step"]

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _set_callbacks(self) -> None:
        # what a population merges, its step merges
        policy = self.policy if self.args.has_rounds else MergePolicy("none", 0)
        merging = MergeCallback(self.booster, policy, self._adaptive, self.args.shrinkage, self.held_out_loss)
        # first of all callbacks, so that every other one sees the state after the merge
        self.callback_handler.callbacks.insert(0, merging)
        if self.args.output_dir and processes.writes(self.args):
            self._run_files = RunFilesCallback(RunFolder(Path(self.args.output_dir)), self.booster, self.policy)
            self.add_callback(self._run_files)
        if self.group is not None:
            self._agreement = Agreement(self.group, self.adapters, self.booster, self.args.zo_agree_steps)
            self.add_callback(self._agreement)
        self.add_callback(LateCheckpoint())
        if processes.writes(self.args):
            self.add_callback(Advise(self.booster, self.tape, reach=2.0 if self.args.zo_two_sided else 1.0))
            reporting = tuple(get_reporting_integration_callbacks(self.args.report_to))
            reporters = [callback for callback in self.callback_handler.callbacks if isinstance(callback, reporting)]
            if reporters and self.args.trainer != "population":
                self.add_callback(ReportSignals(reporters, self.booster, self.tape))
        if self.pop_callback(ProgressCallback) is not None and processes.writes(self.args):
            self.add_callback(ShowProgress(self.booster if self.args.has_rounds else None))
        self.pop_callback(PrinterCallback)


def _identity_of_size(train_dataset: object) -> dict[str, int]:
    # how many steps an epoch has, and the order of its examples
    return {"the number of training examples": len(train_dataset)} if hasattr(train_dataset, "__len__") else {}


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    """Keep the warnings of the logger `name` to itself while the block runs."""
    other = logging.getLogger(name)
    level = other.level
    other.setLevel(logging.ERROR)
    try:
        yield
    finally:
        other.setLevel(level)
