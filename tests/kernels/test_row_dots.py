"""`row_dots`: one launch for several adapters, each with the bits it has alone; and a model whose layers share it."""

import importlib

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="needs Triton")

import xgblora
from xgblora import ops
from xgblora.kernels import row_dot
from xgblora.kernels.rank1_linear import linear_by
from xgblora.kernels.row_dot import MAX_ADAPTERS, row_dots
from xgblora.kernels.tuning import FEW_ROWS, FUSED_GEMM, VENDOR_GEMM, Plan
from xgblora.ops.row_dots import _row_dots, reads_dots

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Counted:
    """A kernel that counts its launches."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid):
        self.launches += 1
        return self.kernel[grid]


@pytest.fixture
def launches(monkeypatch):
    """Counts the launches that make dots."""
    counted = Counted(row_dot.row_dots_fwd_kernel)
    monkeypatch.setattr(row_dot, "row_dots_fwd_kernel", counted)
    return counted


@pytest.fixture
def by_triton(monkeypatch):
    """The operations run Triton, through the interpreter where there is no GPU."""
    monkeypatch.setenv("XGBLORA_BACKEND", "triton")
    ops.choose.cache_clear()
    yield
    ops.choose.cache_clear()


@pytest.fixture
def case(device):
    """A function that makes x [M, K] and adapters [G, K] that are column slices of the rows of an arena."""

    def make(rows, groups, inputs, adapters, dtype=torch.float32, adapter_dtype=None):
        generator = torch.Generator().manual_seed(rows + inputs)
        width = adapters * (inputs + 5)
        arena = torch.randn(groups, width, generator=generator).to(device, adapter_dtype or dtype)
        a = [arena[:, start : start + inputs] for start in range(0, width, inputs + 5)]
        return torch.randn(rows, inputs, generator=generator).to(device, dtype), a

    return make


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "groups", "inputs", "adapters"),
    [(1, 1, 37, 1), (6, 2, 65, 2), (90, 3, 700, 3), (34, 2, 1030, MAX_ADAPTERS), (9, 1, 16, MAX_ADAPTERS + 1)],
)
def test_every_adapter_has_the_bits_that_it_has_alone(case, launches, rows, groups, inputs, adapters, dtype):
    x, a = case(rows, groups, inputs, adapters, dtype)
    t = row_dots(x, a)
    assert launches.launches == (1 if adapters <= MAX_ADAPTERS else 2)
    assert (t.shape, t.dtype) == ((adapters, rows), torch.float32)
    assert torch.allclose(t, _row_dots(x, a), rtol=1e-4, atol=1e-4)
    for one, vectors in zip(t, a, strict=True):
        assert torch.equal(one, row_dots(x, [vectors])[0])


def test_leading_dimensions_strides_and_fp32_adapters(case):
    x, a = case(12, 2, 66, 3, torch.float16, torch.float32)
    expected = row_dots(x, a)
    assert torch.equal(row_dots(x.view(2, 3, 2, 66), a), expected)
    assert torch.equal(row_dots(x.T.contiguous().T, a), expected)
    assert torch.equal(row_dots(x, [vectors.T.contiguous().T for vectors in a]), expected)


def test_no_rows(case):
    x, a = case(0, 2, 6, 3)
    assert row_dots(x.view(2, 0, 6), a).shape == (3, 0)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(FEW_ROWS, block_m=16, block_n=16, block_k=64),
        Plan(VENDOR_GEMM),
        Plan(FUSED_GEMM, block_m=32, block_n=32, block_k=64),
    ],
    ids=lambda plan: plan.path,
)
def test_every_path_gives_the_same_bits_with_dots_that_were_made_before(rank1_case, launches, plan):
    case = rank1_case(24, 2, 70, 50, torch.float32)
    alone = linear_by(plan, *case.forward_arguments)
    assert launches.launches == (plan.path != FEW_ROWS)
    t = row_dots(case.x, [case.b[:, :70].expand(2, 50)[:, :1].expand(2, 70), case.a])[1]
    before = launches.launches
    assert torch.equal(linear_by(plan, *case.forward_arguments, t), alone)
    assert launches.launches == before


@pytest.mark.parametrize(("rows", "reads"), [(1, False), (16, False), (17, True), (768, True)])
def test_few_rows_make_their_own(by_triton, device, rows, reads):
    x, weight = torch.zeros(rows, 8, device=device), torch.zeros(4, 8, device=device)
    assert reads_dots(x, weight) == reads


class Projections(nn.Module):
    """Query, key and value of one input, the key narrower, and an output projection."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(40, outputs) for outputs in (40, 24, 40, 40))

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        return torch.cat([self.o(q * v), k], dim=-1)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [(48, {"alone": 8, "first": 8, "shared": 4}), (8, dict.fromkeys(("alone", "first", "shared"), 0))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_layers_that_read_one_input_share_one_launch(by_triton, launches, device, rows, wanted, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), Projections(), nn.Linear(64, 40), Projections()).to(device, dtype)
    adapters = xgblora.attach(model, [f"{block}.{name}" for block in (1, 3) for name in "qkvo"], alpha=2.0)
    adapters.arena.allocate_live(2, dtype).copy_(torch.randn(2, adapters.arena.master.numel()) * 0.2)
    adapters.arena.read_live(0, 2)
    x = torch.randn(rows, 40, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    outputs, counts = {}, {}
    with torch.no_grad():
        for name in ("alone", "first", "shared"):
            launches.launches = 0
            if name == "alone":
                outputs[name] = model(x)
            else:
                with adapters.arena.while_unchanged():
                    outputs[name] = model(x)
            counts[name] = launches.launches
    assert counts == wanted
    assert torch.equal(outputs["shared"], outputs["alone"])
    assert torch.equal(outputs["first"], outputs["alone"])


def test_steps_have_the_bits_of_steps_that_share_nothing(by_triton, launches, device, monkeypatch):
    def run():
        torch.manual_seed(0)
        adapters = xgblora.attach(Projections().to(device), ["q", "k", "v"], alpha=2.0, seed=0)
        zo = xgblora.ZeroOrder(adapters, lambda model, x: model(x["x"]).square().mean(dim=(1, 2)), eps=1e-2, lr=1e-2)
        # the first one also tries whether stacking is right
        zo.step({"x": torch.randn(2, 9, 40, device=device)})
        launches.launches = 0
        losses = [zo.step({"x": torch.randn(2, 9, 40, device=device)}).loss for _ in range(3)]
        return torch.stack(losses), adapters.arena.master.clone(), launches.launches

    shared = run()
    monkeypatch.setattr(importlib.import_module("xgblora.adapters.shared_inputs"), "reads_dots", lambda *_: False)
    alone = run()
    assert torch.equal(shared[0], alone[0])
    assert torch.equal(shared[1], alone[1])
    # one launch for all three layers
    assert (alone[2], shared[2]) == (9, 3)
