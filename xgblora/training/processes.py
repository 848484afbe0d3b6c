"""The processes of a run: which of them writes, and how what each measured becomes one number.

transformers and accelerate know how many there are; they are asked, and nothing is kept a second time. With one process
it writes, and its losses are those of the run.
"""

from accelerate.utils import gather
from torch import Tensor
from transformers import TrainingArguments

from xgblora.errors import InputError


def refuse_several(args: TrainingArguments) -> None:
    """Raise InputError if several processes were started: each would train a model of its own."""
    if args.world_size > 1:
        raise InputError(
            f"WORLD_SIZE={args.world_size}: a run is trained by one process; start it with python, without torchrun or "
            "accelerate launch"
        )


def writes(args: TrainingArguments) -> bool:
    """Whether this process writes the files of the run: one does, with `save_on_each_node` one of each node."""
    return args.should_save


def mean_over_processes(args: TrainingArguments, losses: Tensor) -> Tensor:
    """The mean of losses over all processes, each of which must call this.

    Args:
        args: of the run.
        losses: [...] of this process, on its device.

    Returns:
        [...], the same bits on every process; with one process `losses` itself.
    """
    if args.world_size == 1:
        return losses
    return gather(losses.unsqueeze(0)).mean(dim=0)
