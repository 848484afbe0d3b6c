"""Layers that read the same input: one `row_dots` for all of them, never one of another input or another adapter.

The eager reference shares nothing by itself, so `reads_dots` is made to say yes. Every case is compared bit for bit
with layers that share nothing.
"""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import xgblora
from xgblora import ops
from xgblora.adapters import shared_inputs

WIDTH = 6
GROUPS = 2


class Block(nn.Module):
    """Projections of one input, of which the key's has another width, and an output projection of their result.

    `between` is called with the input after the query projection and gives what the others read.
    """

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, outputs) for outputs in (WIDTH, 4, WIDTH, WIDTH))
        self.between = lambda x: x

    def forward(self, x):
        q = self.q(x)
        x = self.between(x)
        k, v = self.k(x), self.v(x)
        return torch.cat([self.o(q * v), k], dim=-1)


class Calls(TorchDispatchMode):
    """The calls that make or take dots: the number of adapters of each `row_dots`, and who was given its dots."""

    def __init__(self):
        super().__init__()
        self.made, self.given = [], []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.name() == "xgblora::row_dots":
            self.made.append(len(arguments[1]))
        if function.name() == "xgblora::rank1_linear":
            self.given.append(len(arguments) > 6 and arguments[6] is not None)
        return function(*arguments, **(options or {}))


@pytest.fixture(autouse=True)
def _sharing_pays(monkeypatch):
    monkeypatch.setattr(shared_inputs, "reads_dots", lambda x, weight: True)


@pytest.fixture
def adapters():
    torch.manual_seed(0)
    adapters = xgblora.attach(nn.ModuleDict({"block": Block()}), ["q", "k", "v", "o"], alpha=2.0)
    adapters.arena.allocate_live(3, torch.float32).normal_()
    adapters.arena.read_live(0, GROUPS)
    return adapters


@pytest.fixture
def block(adapters):
    """The block after its first forward, in which it was seen which layers read the same input."""
    block = adapters.model["block"]
    with torch.no_grad(), adapters.arena.while_unchanged(), Calls() as calls:
        block(rows())
    assert (calls.made, calls.given) == ([], [False] * 4)
    return block


def rows(count=8, seed=0):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def both(adapters, compute):
    """What `compute` gives with sharing and without, and the calls with it."""
    with torch.no_grad():
        with adapters.arena.while_unchanged(), Calls() as calls:
            shared = compute()
        return shared, compute(), calls


@pytest.mark.parametrize("start", [0, 1])
def test_one_launch_for_all_that_read_the_same_input(adapters, block, start):
    adapters.arena.read_live(start, start + GROUPS)
    shared, alone, calls = both(adapters, lambda: block(rows(seed=1)))
    assert torch.equal(shared, alone)
    assert calls.made == [3]
    assert calls.given == [True, True, True, False]


def test_two_blocks_share_each_for_itself(make_opt, token_batch, randomise_adapters):
    model, batch = make_opt(), token_batch()
    adapters = xgblora.attach(model, ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"], alpha=2.0)
    randomise_adapters(adapters)
    adapters.arena.allocate_live(1, torch.float32)
    adapters.arena.read_one_row()
    both(adapters, lambda: model(**batch).logits)
    shared, alone, calls = both(adapters, lambda: model(**batch).logits)
    assert torch.equal(shared, alone)
    assert calls.made == [3, 3]
    assert sum(calls.given) == 6


def changed_in_place(adapters, x):
    return x.mul_(2)


def a_view_is_changed_in_place(adapters, x):
    x.view(-1)[0] = 5
    return x


def equal_numbers_elsewhere(adapters, x):
    return x.clone()


def other_numbers_at_the_same_address(adapters, x):
    before = x.data_ptr()
    x.data = torch.zeros(0)
    for _ in range(100):
        other = rows(seed=9)
        if other.data_ptr() == before:
            break
    return other


def other_numbers_in_the_same_object(adapters, x):
    x.data = rows(seed=9)
    return x


def other_rows_of_live(adapters, x):
    adapters.arena.read_live(1, 1 + GROUPS)
    return x


def another_number_of_groups(adapters, x):
    adapters.arena.read_live(0, 1)
    return x


def another_perturbation(adapters, x):
    arena = adapters.arena
    signs = torch.tensor([1.0, -1.0, 0.0])
    arena.perturb(torch.tensor([3]), torch.tensor([0.5]), signs, "gaussian")
    return x


def restored(adapters, x):
    adapters.arena.restore()
    return x


def new_live(adapters, x):
    adapters.arena.allocate_live(3, torch.float32)
    adapters.arena.read_live(0, GROUPS)
    return x


@pytest.mark.parametrize(
    "change",
    [
        changed_in_place,
        a_view_is_changed_in_place,
        equal_numbers_elsewhere,
        other_numbers_at_the_same_address,
        other_numbers_in_the_same_object,
        other_rows_of_live,
        another_number_of_groups,
        another_perturbation,
        restored,
        new_live,
    ],
    ids=lambda change: change.__name__,
)
def test_what_changed_since_is_computed_anew(adapters, block, change):
    outputs = []
    start = adapters.arena.live.clone()
    for shares in (True, False):
        if adapters.arena.live.shape == start.shape:
            adapters.arena.live.copy_(start)
        adapters.arena.read_live(0, GROUPS)
        block.between = lambda x: change(adapters, x)
        with torch.no_grad():
            if shares:
                with adapters.arena.while_unchanged(), Calls() as calls:
                    outputs.append(block(rows(seed=1)))
            else:
                outputs.append(block(rows(seed=1)))
    assert calls.made[0] == 3, "the case is none if nothing was made for the others"
    assert calls.given[:3] == [True, False, False]
    assert torch.equal(*outputs)


def test_what_was_made_on_another_stream_is_not_taken(adapters, block, monkeypatch):
    streams = []
    monkeypatch.setattr(shared_inputs, "_state_of", lambda x: (x._version, x.data_ptr(), len(streams)))
    block.between = lambda x: streams.append("another") or x
    shared, alone, calls = both(adapters, lambda: block(rows(seed=1)))
    assert torch.equal(shared, alone)
    assert calls.given == [True, False, False, False]


def test_a_layer_called_alone_makes_its_own(adapters, block):
    for name in ("q", "k", "v", "o"):
        shared, alone, _ = both(adapters, lambda name=name: block.get_submodule(name)(rows(seed=2)))
        assert torch.equal(shared, alone)


def test_layers_that_come_in_another_order_or_not_at_all_learn_it(adapters, block):
    x = rows(seed=3)
    for order in ("vkq", "vkq", "qk", "qk", "q", "q", "kqv"):
        shared, alone, calls = both(
            adapters, lambda order=order: torch.cat([block.get_submodule(name)(x) for name in order], dim=-1)
        )
        assert torch.equal(shared, alone)
    _, _, calls = both(adapters, lambda: [block.get_submodule(name)(x) for name in "kqv"])
    assert (calls.made, calls.given) == ([3], [True] * 3)


def test_nothing_is_shared_outside(adapters, block):
    with torch.no_grad(), Calls() as calls:
        block(rows())
    assert calls.made == []


def test_nothing_is_shared_where_adapters_are_trained_by_backpropagation(adapters, block):
    results = []
    for shares in (True, False):
        adapters.arena.read_master()
        with Calls() as calls:
            if shares:
                with adapters.arena.while_unchanged():
                    loss = block(rows()).square().sum()
            else:
                loss = block(rows()).square().sum()
        assert calls.made == []
        results.append(torch.autograd.grad(loss, [block.q.a, block.k.b]))
    assert all(map(torch.equal, *results))


def test_an_objective_that_asks_for_gradients_gets_them(adapters, block):
    x = rows().requires_grad_()
    with adapters.arena.while_unchanged(), Calls() as calls:
        (shared,) = torch.autograd.grad(block(x).square().sum(), x)
    assert calls.made == []
    assert torch.equal(shared, torch.autograd.grad(block(x).square().sum(), x)[0])


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
def test_where_writes_are_not_counted_or_x_is_cast_nothing_is_shared(adapters, block, mode):
    def compute():
        with mode():
            return block(rows())

    shared, alone, calls = both(adapters, compute)
    assert torch.equal(shared, alone)
    assert calls.made == []


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_kept_and_nothing_hangs_in_a_cycle(adapters, block, fails):
    def fail(x):
        if fails:
            raise RuntimeError("of the model")
        return x

    made = []
    row_dots = shared_inputs.row_dots
    gc.collect()
    gc.disable()
    try:
        x = rows(seed=1)
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(shared_inputs, "row_dots", lambda *given: made.append(row_dots(*given)) or made[-1])
            block.between = fail
            try:
                with adapters.arena.while_unchanged():
                    block(x)
            except RuntimeError as error:
                assert fails, error
        (dots,) = made
        watched = weakref.ref(x), weakref.ref(dots)
        del x, dots
        made.clear()
        assert [one() for one in watched] == [None, None]
    finally:
        gc.enable()


def test_an_input_goes_as_soon_as_the_model_lets_it(adapters, block):
    with torch.no_grad(), adapters.arena.while_unchanged():
        x = rows(seed=1)
        block.q(x)
        watched = weakref.ref(x)
        del x
        assert watched() is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_stand_alone(adapters, block, copied):
    with torch.no_grad(), adapters.arena.while_unchanged(), Calls() as calls:
        x = rows(seed=1)
        q = block.q(x)
        other = copied(block.k)
        other.a.zero_()
        assert torch.equal(other(x), other.base(x))
    assert calls.given == [True, False]
    assert q.shape == (8, WIDTH)


def test_threads_get_what_they_ask_for(adapters, block):
    inputs = [rows(seed=seed) for seed in range(4)]
    with torch.no_grad():
        expected = [block(x) for x in inputs]
    wrong = []

    def run(index):
        with torch.no_grad():
            for _ in range(30):
                # two threads ask with the same tensor, two with others
                if not torch.equal(block(inputs[index // 2]), expected[index // 2]):
                    wrong.append(index)

    with adapters.arena.while_unchanged():
        threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("compiled_part", ["model", "q", "k"])
def test_compiled_code_is_whole_and_shares_nothing(adapters, block, compiled_part):
    torch._dynamo.reset()
    x = rows(seed=1)
    with torch.no_grad():
        expected = block(x)
        if compiled_part == "model":
            run = torch.compile(block, fullgraph=True, backend="aot_eager")
        else:
            block.get_submodule(compiled_part).compile(fullgraph=True, backend="aot_eager")
            run = block
        for _ in range(3):
            with adapters.arena.while_unchanged():
                assert torch.equal(run(x), expected)


def test_a_write_by_perturb_is_counted(adapters):
    live = adapters.arena.live
    before = live._version
    ops.perturb(adapters.arena.master, live, 3, 0.5, torch.tensor([1.0, -1.0, 0.0]))
    assert live._version > before
