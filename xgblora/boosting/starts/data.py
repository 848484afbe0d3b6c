"""`data`: `a` is a sum of what the layer reads, weighted by noise: a direction in which its inputs vary."""

from collections import defaultdict

import torch
from torch import Tensor

from xgblora.adapters import AdapterSet
from xgblora.boosting.starts.forwards import forwards
from xgblora.boosting.starts.measured_a import adapter_of, some_of
from xgblora.boosting.starts.strategy import Measured, Samples
from xgblora.ops.noise import derive_seed, normal


def data(adapters: AdapterSet, samples: Samples, round: int) -> Tensor:
    """`a` noise-weighted sums of the layer's inputs over all tokens of training texts, `b` zero; fp32 [P].

    A linear layer's gradient lies in the span of its inputs: a direction outside of it has none (AGZO,
    arXiv:2601.17261, draws its perturbations there). Layers that read one input share the sum.
    """
    sums: dict[str, Tensor | float] = defaultdict(float)
    inputs: dict[str, list[Tensor]] = defaultdict(list)
    for batch, forward in enumerate(forwards(adapters, samples, round)):
        for number, read in enumerate(forward.reads):
            x = read.x if forward.there is None else read.x[forward.there]
            seed = derive_seed(adapters.seed, round, batch, number)
            z = normal(seed, adapters.rank * len(x), device=x.device).view(adapters.rank, -1)
            of_batch, some = (z @ x.float()).double().cpu(), some_of(x, None)
            for name in read.layers:
                sums[name] = sums[name] + of_batch
                inputs[name].append(some)
    return adapter_of(adapters, round, sums, {name: torch.cat(of_layer) for name, of_layer in inputs.items()})


DATA = Measured(data)
