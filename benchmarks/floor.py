"""The floor of a zeroth-order step: bare forwards of the same model and dtype that stop at the option rows.

They are spared what the step is spared: the vocabulary, and in the last layer all but keys and values, for other rows.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from xgblora.objectives.texts import CandidateObjective, classification


def bare_forwards(model: nn.Module, batch: dict[str, Tensor], forwards: int) -> Callable[[], None]:
    """`forwards` forwards of `model`, which has no adapters, one after the other; on a GPU as one CUDA graph."""
    objective = CandidateObjective(model, classification)

    @torch.no_grad()
    def run() -> None:
        for _ in range(forwards):
            objective(model, batch)

    if batch["input_ids"].device.type != "cuda":
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
