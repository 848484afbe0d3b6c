"""The processes of a run: which of them writes, what each has of a step, and how they go about as one.

transformers and accelerate know how many there are; they are asked, and nothing is kept a second time. With one process
it writes, and its losses are those of the run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from transformers import TrainingArguments

from xgblora.errors import InputError
from xgblora.process_group import AgreedInputError, ProcessGroup, join, started
from xgblora.zo.exchange import Alone, Exchange, Gather, ShareOfExamples, ShareOfForwards, by_directions, by_signs

# --zo_parallel: what of a step each process has -> the exchange of (gather, process, processes)
KINDS: dict[str, Callable[[Gather, int, int], Exchange]] = {
    "examples": lambda gather, process, processes: ShareOfExamples(gather),
    "directions": lambda gather, process, processes: ShareOfForwards(gather, process, by_directions(processes)),
    "signs": lambda gather, process, processes: ShareOfForwards(gather, process, by_signs(processes)),
}


def check_processes(args: TrainingArguments) -> None:
    """Raise InputError if several processes were started and the flags do not go with them."""
    if args.world_size == 1:
        if started() > 1:
            raise InputError(
                f"WORLD_SIZE={started()}: transformers takes each of the processes for a run of its own; start one, or "
                "give --use_cpu where they have no GPU each"
            )
        return
    if args.trainer == "population":
        raise InputError(
            f"trainer=population: is for one process, and there are {args.world_size}; start it with python, without "
            "torchrun or accelerate launch"
        )
    kind = args.zo_parallel
    if kind != "examples" and args.trainer == "regular":
        raise InputError(f"zo_parallel={kind}: backpropagation shares examples alone; leave it out")
    if args.xgblora_hard_examples:
        raise InputError(
            f"xgblora_hard_examples={args.xgblora_hard_examples}: one process knows which examples are hard, and there "
            f"are {args.world_size}; leave it out"
        )
    if kind == "signs" and args.full:
        raise InputError("zo_parallel=signs: is for adapters; --full takes examples or directions")
    if args.torch_compile and args.trainer == "regular":
        raise InputError(f"torch_compile=True: is for one process, and there are {args.world_size}; leave it out")
    if args.trainer == "zo":
        exchange_of(args, ProcessGroup(args.process_index, args.world_size, "cpu", 0.0)).rows(args.estimator)


def group_of(args: TrainingArguments) -> ProcessGroup | None:
    """The processes of the run, which have yet to meet; None where there is one."""
    if args.world_size == 1:
        return None
    return ProcessGroup(args.process_index, args.world_size, args.device.type, args.ddp_timeout)


def exchange_of(args: TrainingArguments, group: ProcessGroup | None) -> Exchange:
    """What of a zeroth-order step this process has, and where the rest comes from."""
    if group is None:
        return Alone()
    return KINDS[args.zo_parallel](group.gather, group.process, group.processes)


def shares_examples(args: TrainingArguments) -> bool:
    """Whether each process trains on batches of its own, and not all on the same ones."""
    return args.world_size > 1 and (args.trainer != "zo" or args.zo_parallel == "examples")


def writes(args: TrainingArguments) -> bool:
    """Whether this process writes the files of the run: one does, with `save_on_each_node` one of each node."""
    return args.should_save


@contextmanager
def refusing_together() -> Iterator[None]:
    """Let an InputError of one process in the block end all of them: the first has its line, the others an empty one.

    Without it the others would wait for a process that is gone. With one process the block is all there is.
    """
    if started() == 1:
        yield
        return
    join()
    line = None
    try:
        yield
    except InputError as error:
        line = str(error)
    lines: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(lines, line)
    wrong = [number for number, line in enumerate(lines) if line is not None]
    if not wrong:
        return
    if dist.get_rank():
        raise AgreedInputError("")
    said = lines[wrong[0]]
    raise AgreedInputError(said if len(set(lines)) == 1 else f"process {wrong[0]}: {said}")
