"""`data`: `a` is a sum of what the layer reads, weighted by noise: a direction in which its inputs vary."""

from collections import defaultdict

from torch import Tensor

from xgblora.adapters import AdapterSet
from xgblora.boosting.starts.forwards import forwards
from xgblora.boosting.starts.measured_a import MOST_POSITIONS, adapter_of, by_layer, some_of
from xgblora.boosting.starts.strategy import Measured, Samples
from xgblora.boosting.starts.thinned import Thinned
from xgblora.ops.noise import derive_seed, normal


def data(adapters: AdapterSet, samples: Samples, round: int) -> Tensor:
    """`a` noise-weighted sums of the layer's inputs over all tokens of training texts, `b` zero; fp32 [P].

    A linear layer's gradient lies in the span of its inputs: a direction outside of it has none (AGZO,
    arXiv:2601.17261, draws its perturbations there). Layers that read one input share the sum.
    """
    sums: dict[tuple[str, ...], Tensor | float] = defaultdict(float)
    inputs: dict[tuple[str, ...], Thinned] = defaultdict(lambda: Thinned(MOST_POSITIONS))
    for batch, forward in enumerate(forwards(adapters, samples, round)):
        for number, read in enumerate(forward.reads):
            x = read.x if forward.there is None else read.x[forward.there.to(read.x.device)]
            seed = derive_seed(adapters.seed, round, batch, number)
            z = normal(seed, adapters.rank * len(x), device=x.device).view(adapters.rank, -1)
            sums[read.layers] = sums[read.layers] + (z @ x.float()).double().cpu()
            inputs[read.layers].add(some_of(x, None))
    rows = {layers: held.rows for layers, held in inputs.items()}
    return adapter_of(adapters, round, by_layer(sums), by_layer(rows))


DATA = Measured(data)
