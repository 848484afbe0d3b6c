"""The zeroth-order step against its floor and against the peers' steps; `step_ways.py` says what each computes."""

import pytest
import torch

from benchmarks.measure import Work, compare
from benchmarks.models import EXAMPLES, random_model
from benchmarks.step_ways import step_ways

published = pytest.mark.published
CASES = [
    pytest.param("small", "float32", id="small-float32"),
    *(
        pytest.param(shape, dtype, id=f"{shape}-{dtype}", marks=published)
        for shape in ("opt-125m", "opt-350m")
        for dtype in ("float32", "bfloat16")
    ),
    pytest.param("opt-1.3b", "bfloat16", id="opt-1.3b-bfloat16", marks=published),
]


@pytest.fixture
def ways_of(device):
    """A function `(shape, name of a dtype, names)`: those of the ways that there are, and the work of a step."""

    def make(shape: str, dtype_name: str, names: tuple[str, ...]) -> tuple[dict, Work]:
        if shape == "opt-1.3b" and device.type == "cpu":
            pytest.skip("opt-1.3b's shape takes minutes a step on a CPU: it is measured on a GPU")
        dtype, length = getattr(torch, dtype_name), 64 if device.type == "cuda" else 48
        made = step_ways(shape, device, dtype, length)
        assert not made.mismatch
        work = Work(flops=2 * forward_flops(shape, EXAMPLES * (length - 1)), dtype=dtype)
        return {name: made.by_name[name] for name in names if name in made.by_name}, work

    return make


def forward_flops(shape: str, tokens: int) -> float:
    """2 FLOP a token and weight of the layers; the embeddings are read, and the vocabulary sees few rows."""
    model = random_model(shape, torch.device("meta"), torch.float32)
    return 2.0 * tokens * sum(parameter.numel() for parameter in model.get_decoder().layers.parameters())


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_step_against_floor_and_mezo(benchmark, device, ways_of, shape, name):
    ways, work = ways_of(shape, name, ("step", "floor", "mezo", "uncaptured"))
    compare(benchmark, "step", ways, rounds=5 if shape.startswith("opt") else 15, device=device, work=work)


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_step_against_peers_at_the_same_rows(benchmark, device, ways_of, shape, name):
    ways, work = ways_of(shape, name, ("step", "mezo_same_rows", "lozo", "grzo", "full"))
    compare(benchmark, "step", ways, rounds=3, device=device, work=work)
