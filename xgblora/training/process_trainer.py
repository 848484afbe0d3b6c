"""`ProcessTrainer`: transformers' `Trainer` as one of the processes of a run.

Alone it is transformers' own. Of several, each has its share of the evaluations, and all go by the numbers of the first
one; by backpropagation the adapters are wrapped in DDP, with the objective inside, since DDP looks at what is called.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard, IterableDatasetShard
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from xgblora.errors import InputError
from xgblora.process_group import ProcessFailure, ProcessGroup
from xgblora.records import checkpoint
from xgblora.training import processes
from xgblora.zo.exchange import mean_in_order


class MeanLoss(nn.Module):
    """The mean loss of a model on a batch, as a module.

    Args:
        model: the model.
        objective: `(model, batch) -> losses`.
    """

    def __init__(self, model: nn.Module, objective: Callable[[nn.Module, dict], Tensor]):
        super().__init__()
        self.model, self._objective = model, objective

    def forward(self, batch: dict) -> Tensor:
        return self._objective(self.model, batch).mean()


class ProcessTrainer(Trainer):
    """What of training, evaluating and saving takes all processes of a run.

    Attributes:
        group: the processes; None where there is one. To be set before transformers' trainer is made.
        objective: `(model, batch) -> losses`; likewise.
    """

    group: ProcessGroup | None
    objective: Callable[[nn.Module, dict], Tensor]

    def agreed(self, value: Any) -> Any:
        """What the first process has for `value`; each must ask."""
        return value if self.group is None else self.group.of_first(value)

    @contextmanager
    def noticing_losses(self) -> Iterator[None]:
        """Let what ends the block say who is gone, where a process of the run is: what it raises is a consequence.

        Raises:
            ProcessFailure: a process of this machine ended meanwhile.
        """
        try:
            yield
        except (InputError, ProcessFailure):
            raise
        except BaseException as error:
            # SIGTERM among them: what started the processes ends them all when one has ended
            within = 2.0 if isinstance(error, RuntimeError) else 0.0  # seconds; a collective's error
            if self.group is not None and self.group.gone(within):
                raise self.group.lost() from error
            raise

    def checkpoint_to_go_on_from(self, asked: str | bool | None) -> str | Path | None:
        """The checkpoint of the first process, for True the newest whole one; a copy of it where this one has it not.

        So a machine can join that has the base model alone: what is sent are adapters, ledger and tape.

        Raises:
            InputError: there is no whole checkpoint.
        """
        if asked is True and (self.group is None or self.group.first):
            folder = Path(self.args.output_dir)
            asked, damaged = checkpoint.newest_whole(folder)
            if asked is None:
                reasons = "".join(f"; {line}" for line in damaged)
                raise InputError(f"resume_from_checkpoint=True: there is no whole checkpoint in {folder}{reasons}")
        if self.group is None:
            return asked
        name, manifest = self.group.of_first(_name_and_manifest(asked))
        if name is None:
            return None
        has_it = _name_and_manifest(asked) == (name, manifest)
        if all(self.group.objects(has_it)):
            return asked
        files = {path.name: path.read_bytes() for path in Path(asked).iterdir()} if self.group.first else None
        files = self.group.of_first(files)
        if has_it:
            return asked
        self._copied = tempfile.TemporaryDirectory()
        copy = Path(self._copied.name) / name
        copy.mkdir()
        for file, content in files.items():
            (copy / file).write_bytes(content)
        return copy

    def mean_over_processes(self, loss: Tensor) -> Tensor:
        """The mean of a loss [] over all processes, the same bits on each."""
        return loss if self.group is None else mean_in_order(self.group.gather(loss.reshape(1)))[0]

    def sum_of_losses(self, loss: Tensor, examples: int) -> tuple[float, int]:
        """The sum of the losses of an evaluation batch, of which `loss` [] is the mean, over all processes.

        Args:
            loss: of this process.
            examples: in its batch.

        Returns:
            The sum, and of how many examples: those that fill a last batch up are not counted.
        """
        if self.group is None:
            return loss.item() * examples, examples
        losses = self.accelerator.gather_for_metrics(loss.repeat(examples))
        return losses.double().sum().item(), len(losses)

    def create_accelerator_and_postprocess(self) -> None:
        """transformers' accelerator; it wraps no model by itself: one without gradients has nothing to average."""
        super().create_accelerator_and_postprocess()
        if self.group is None or self.args.trainer == "zo":
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        """transformers' loop, each process with its share; the metrics are those of the first.

        It draws none of the caller's random numbers: the order of a data loader takes one, and dropout's next mask
        would depend on how often and where a run is evaluated.
        """
        with torch.random.fork_rng(devices=()):
            output = super().evaluation_loop(*args, **kwargs)
        return output._replace(metrics=self.agreed(output.metrics))

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        """The mean of the objective's losses."""
        wrapped = isinstance(model, DistributedDataParallel)
        loss = model(inputs) if wrapped else self.objective(model, inputs).mean()
        return (loss, {}) if return_outputs else loss

    def _get_dataloader(self, *args, is_training: bool = False, **kwargs) -> DataLoader:
        loader = super()._get_dataloader(*args, is_training=is_training, **kwargs)
        if is_training and self.group is not None and not processes.shares_examples(self.args):
            _give_whole(loader)
        return loader

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: DataLoader | None = None) -> nn.Module:
        model = super()._wrap_model(model, training, dataloader)
        if self.group is None or not training or self.args.trainer != "regular" or model is not self.model:
            return model
        return self.accelerator.prepare_model(MeanLoss(model, self.objective))

    def gather_random_states(self) -> None:
        """Let the process that writes have the states of the random generators of all; before each checkpoint."""
        if self.group is not None:
            with tempfile.TemporaryDirectory() as folder:
                super()._save_rng_state(folder)
                (ours,) = (path.read_bytes() for path in Path(folder).iterdir())
            self._random_states = self.group.objects(ours)

    def _save_rng_state(self, output_dir: str) -> None:
        if self.group is None:
            super()._save_rng_state(output_dir)
            return
        for number, state in enumerate(self._random_states):
            (Path(output_dir) / f"rng_state_{number}.pth").write_bytes(state)
        # for a run that goes on with one process
        (Path(output_dir) / "rng_state.pth").write_bytes(self._random_states[0])


def _name_and_manifest(folder: str | Path | None) -> tuple[str, bytes] | tuple[None, None]:
    """What tells a checkpoint from every other; None where there is none."""
    path = Path(folder) / checkpoint.MANIFEST if folder else None
    return (Path(folder).name, path.read_bytes()) if path and path.is_file() else (None, None)


def _give_whole(loader: DataLoader) -> None:
    """Let every process have all batches of `loader`, as one alone has them."""
    for part in (loader.batch_sampler, loader.dataset):
        if isinstance(part, BatchSamplerShard | IterableDatasetShard):
            part.num_processes, part.process_index, part.even_batches = 1, 0, False
