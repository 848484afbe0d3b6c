import copy
import pickle

import pytest
import torch
from torch import nn

import xgblora
from xgblora.adapters.arena import ALIGNMENT
from xgblora.errors import InputError
from xgblora.ops.noise import derive_seed


class Odd(nn.Module):
    """Two layers whose sizes are multiples of nothing."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 3), nn.Linear(3, 7)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


@pytest.fixture
def odd():
    torch.manual_seed(0)
    return Odd()


def attach(model, **options):
    return xgblora.attach(model, ["first", "second"], **{"alpha": 2.0, **options})


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_slots_are_aligned_disjoint_and_inside_the_arena(odd, rank):
    arena = attach(odd, rank=rank).arena
    end = 0
    for slot, (inputs, outputs) in zip(arena.slots, [(5, 3), (3, 7)], strict=True):
        assert (slot.rank, slot.in_features, slot.out_features) == (rank, inputs, outputs)
        for start, size in ((slot.a_start, rank * inputs), (slot.b_start, rank * outputs)):
            assert start % ALIGNMENT == 0
            assert start >= end
            end = start + size
    assert end <= arena.master.numel() < end + ALIGNMENT
    assert arena.master.numel() % ALIGNMENT == 0, "every row of live starts aligned too"
    assert [slot.name for slot in arena.slots] == ["first", "second"]


@pytest.mark.parametrize("rank", [1, 3])
def test_parameters_are_views_into_master(odd, rank):
    adapters = attach(odd, rank=rank)
    storage = adapters.arena.master.untyped_storage().data_ptr()
    for slot, layer in zip(adapters.arena.slots, adapters.layers.values(), strict=True):
        assert layer.a.untyped_storage().data_ptr() == storage == layer.b.untyped_storage().data_ptr()
        assert (layer.a.storage_offset(), layer.b.storage_offset()) == (slot.a_start, slot.b_start)
        assert layer.a.shape == (rank, slot.in_features)
        assert layer.b.shape == (rank, slot.out_features)
        assert layer.a.is_contiguous()
        assert layer.b.is_contiguous()


def test_writing_master_changes_the_layers_and_writing_a_parameter_changes_master(odd):
    adapters = attach(odd)
    adapters.arena.master.fill_(0.5)
    assert all(torch.all(p == 0.5) for layer in adapters.layers.values() for p in (layer.a, layer.b))
    with torch.no_grad():
        odd.second.b.fill_(3.0)
    assert (adapters.arena.master == 3.0).sum() == 7


def test_an_ordinary_optimizer_moves_master(odd):
    adapters = attach(odd)
    before = adapters.arena.master.clone()
    optimizer = torch.optim.AdamW([p for p in odd.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        odd(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
    moved = adapters.arena.master != before
    covered = torch.zeros_like(moved)
    for slot in adapters.arena.slots:
        for part in slot.views(covered.unsqueeze(0)):
            part.fill_(True)
    assert torch.equal(moved, covered), "all of the adapters and none of the padding"
    assert torch.equal(odd.first.a.flatten(), adapters.arena.master[:5])


@pytest.mark.parametrize("convert", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
def test_converting_the_model_keeps_the_adapters_fp32_and_in_the_arena(odd, convert):
    adapters = attach(odd)
    adapters.arena.master.normal_()
    before = adapters.arena.master.clone()
    convert(odd)
    assert {odd.first.weight.dtype, odd.second.bias.dtype} == {adapters.compute_dtype} != {torch.float32}
    assert odd.first.a.dtype == odd.first.b.dtype == adapters.arena.master.dtype == torch.float32
    assert torch.equal(adapters.arena.master, before)
    adapters.arena.master.fill_(0.25)
    assert torch.all(odd.second.b == 0.25)
    if adapters.compute_dtype != torch.float64:
        assert odd(torch.randn(2, 5).to(adapters.compute_dtype)).dtype == adapters.compute_dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_moving_the_model_moves_the_whole_arena(odd):
    adapters = attach(odd)
    odd.cuda()
    assert {p.device.type for p in odd.parameters()} == {adapters.arena.master.device.type} == {"cuda"}
    adapters.arena.master.fill_(0.5)
    assert torch.all(odd.second.b == 0.5)


def test_adapters_are_fp32_whatever_the_default_dtype_is(odd):
    torch.set_default_dtype(torch.bfloat16)
    try:
        adapters = attach(odd)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {adapters.arena.master.dtype, odd.first.a.dtype, odd.first.b.dtype} == {torch.float32}


def test_loading_a_state_dict_fills_master(odd):
    adapters = attach(odd)
    state = {name: torch.full_like(value, 0.125) for name, value in odd.state_dict().items()}
    odd.load_state_dict(state)
    assert (adapters.arena.master == 0.125).sum() == adapters.num_parameters()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_live_holds_the_cast_of_master_after_allocation_and_restoration(odd, dtype):
    arena = attach(odd).arena
    arena.restore()
    arena.master.normal_()
    live = arena.allocate_live(3, dtype)
    assert live is arena.live
    assert live.is_contiguous()
    assert torch.equal(live, arena.master.to(dtype).expand(3, -1))
    live.fill_(float("nan"))
    arena.restore()
    assert torch.equal(live, arena.master.to(dtype).expand(3, -1))


@pytest.mark.parametrize("groups", [1, 2])
def test_live_never_shares_memory_with_master(odd, groups):
    arena = attach(odd).arena
    before = arena.master.clone()
    arena.allocate_live(groups, torch.float32).fill_(float("nan"))
    assert torch.equal(arena.master, before)


def test_layers_read_the_rows_of_live_they_are_told_to(odd):
    adapters = attach(odd)
    arena, x = adapters.arena, torch.randn(4, 5)
    adapters.arena.master.normal_()
    live = arena.allocate_live(3, torch.float32)
    live.normal_()
    with torch.no_grad():
        by_master = odd(x)
        by_row = []
        for row in range(3):
            arena.master.copy_(live[row])
            by_row.append(odd(x))
            arena.read_live(row, row + 1)
            assert torch.allclose(odd(x), by_row[row], atol=1e-6)
            arena.read_master()
        assert not torch.allclose(by_row[0], by_row[1])
        arena.read_live(1, 3)
        together = odd(torch.cat((x, x)))
        assert torch.allclose(together, torch.cat(by_row[1:]), atol=1e-6)
        arena.read_live(0, 1)
        live[0].zero_()
        assert not torch.equal(odd(x), by_row[0]), "live is read in place"
        arena.read_master()
        assert not torch.equal(odd(x), by_master), "master was written meanwhile"


def test_two_groups_in_one_forward_are_two_forwards(make_model, token_batch):
    model, batch = make_model(), token_batch()
    adapters = xgblora.attach(model, alpha=2.0)
    arena = adapters.arena
    live = arena.allocate_live(2, torch.float32)
    live.copy_(torch.randn(live.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    with torch.no_grad():
        alone = []
        for row in range(2):
            arena.read_live(row, row + 1)
            alone.append(model(**batch).logits)
        arena.read_live(0, 2)
        together = model(**{name: value.repeat(2, 1) for name, value in batch.items()}).logits
    assert (alone[0] - alone[1]).abs().max() > 0.01
    assert torch.allclose(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_live_rows_carry_no_gradient_and_master_does_again_afterwards(odd):
    arena = attach(odd).arena
    arena.allocate_live(1, torch.float32)
    arena.read_live(0, 1)
    assert not odd(torch.randn(2, 5)).requires_grad
    arena.read_master()
    assert odd(torch.randn(2, 5)).requires_grad


@pytest.mark.parametrize("rank", [1, 4])
def test_every_round_starts_from_noise_of_seed_and_round(make_opt, rank):
    adapters = xgblora.attach(make_opt(), alpha=1.0, rank=rank, seed=5)
    arena = adapters.arena
    first = arena.master.clone()
    adapters.reinitialise(round=1)
    second = arena.master.clone()
    adapters.reinitialise(round=0)
    assert torch.equal(arena.master, first)
    assert not torch.equal(first, second)
    torch.manual_seed(99)
    torch.rand(3)
    same = xgblora.attach(make_opt(seed=7), alpha=9.0, rank=rank, seed=5)
    assert torch.equal(same.arena.master, first), "neither weights, alpha nor torch's generator matter"
    other = xgblora.attach(make_opt(), alpha=1.0, rank=rank, seed=6)
    assert not torch.equal(other.arena.master, first)
    assert derive_seed(5, 0) != derive_seed(5, 1)


def test_a_starts_uniform_within_its_bound_and_b_at_zero(odd):
    model = nn.ModuleDict({"wide": nn.Linear(4096, 2), "narrow": nn.Linear(4, 4096)})
    adapters = xgblora.attach(model, ["wide", "narrow"], alpha=1.0, rank=2)
    adapters.arena.master.fill_(7.0)
    adapters.reinitialise(round=3)
    for slot in adapters.arena.slots:
        a, b = adapters.arena.a_and_b(slot)
        bound = slot.in_features**-0.5
        assert torch.all(b == 0)
        assert a.abs().max() <= bound
        if slot.in_features > 100:
            assert a.abs().max() > 0.99 * bound
            assert abs(a.mean() / bound) < 0.05
            assert abs(a.std() / bound - 3**-0.5) < 0.02
    assert len(model["wide"].a.unique()) > 8000, "rows of a differ"


def test_reinitialising_restores_live(odd):
    adapters = attach(odd)
    live = adapters.arena.allocate_live(2, torch.bfloat16)
    live.fill_(float("nan"))
    adapters.reinitialise(round=4)
    assert torch.equal(live, adapters.arena.master.bfloat16().expand(2, -1))


def test_padding_is_zero(odd):
    adapters = attach(odd)
    adapters.reinitialise(round=2)
    master = adapters.arena.master.clone()
    for slot in adapters.arena.slots:
        for part in slot.views(master.unsqueeze(0)):
            part.zero_()
    assert torch.all(master == 0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_the_model_stands_alone(odd, duplicate):
    adapters, x = attach(odd), torch.randn(4, 5)
    adapters.arena.master.normal_()
    adapters.arena.allocate_live(1, torch.float32)
    adapters.arena.read_live(0, 1)
    with torch.no_grad():
        before = odd(x)
        twin = duplicate(odd)
        adapters.arena.master.zero_()
        adapters.arena.restore()
        assert torch.equal(twin(x), before)
        assert not torch.equal(odd(x), before)
    given = (twin.first.live, twin.first.shared_inputs, twin.first.move_storage, *twin.first.frozen_with)
    assert given == (None, None, None), "nothing is left of an arena that its parameters are no views into"


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda adapters: pickle.loads(pickle.dumps(adapters))])
@pytest.mark.parametrize("reading_live", [False, True])
def test_a_copy_of_the_adapters_is_the_storage_of_the_copied_layers(odd, duplicate, reading_live):
    adapters, x = attach(odd), torch.randn(4, 5)
    adapters.arena.master.normal_()
    if reading_live:
        adapters.arena.allocate_live(2, torch.float32)
        adapters.arena.read_live(0, 1)
    with torch.no_grad():
        before = odd(x)
        twin = duplicate(adapters)
        assert torch.equal(twin.model(x), before)
        twin.arena.master.zero_()
        assert not torch.equal(twin.model(x), before)
        twin.arena.allocate_live(2, torch.float32).normal_()
        twin.arena.read_one_row()
        changed = twin.model(x)
        assert not torch.equal(changed, before)
        twin.arena.master.copy_(twin.arena.live[0])
        assert torch.allclose(xgblora.detach(twin.model)(x), changed, atol=1e-5)
        assert torch.equal(odd(x), before), "the first one is what it was"


def test_adapters_that_were_taken_off_are_refused_in_one_line(odd):
    adapters = attach(odd)
    adapters.arena.allocate_live(1, torch.float32)
    xgblora.detach(odd)
    with pytest.raises(InputError, match="the adapters were taken off the model"):
        adapters.arena.read_live(0, 1)
    assert attach(odd).arena.refuse_detached() is None, "others may be attached"


@pytest.mark.parametrize("rank", [1, 3])
def test_texts_of_a_batch_may_read_rows_of_live_in_any_order(odd, rank):
    arena = attach(odd, rank=rank).arena
    arena.allocate_live(5, torch.float32).copy_(torch.randn(5, arena.master.numel()))
    x = torch.randn(4, 6, 5)
    texts = torch.tensor([3, 0, 3, 2], dtype=torch.int32)
    arena.read_live(1, 5, texts)
    together, packed = odd(x), odd(x.view(1, 24, 5))
    for text, y in zip(texts.tolist(), zip(x, together, packed.view(4, 6, 7), strict=True), strict=True):
        arena.read_live(1 + text, 2 + text)
        for ours in y[1:]:
            assert torch.allclose(ours, odd(y[0]), rtol=1e-5, atol=1e-5)
    arena.read_live(1, 5, texts)
    arena.read_master()
    assert all(layer.group_of_row is None for layer in (odd.first, odd.second))
