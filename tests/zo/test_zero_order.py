"""A zeroth-order step made by hand, what it leaves of the model, and runs of steps."""

import copy
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import xgblora
from tests.zo.toys import next_token_losses, squared_errors
from xgblora import ops
from xgblora.errors import InputError
from xgblora.ops.noise import DISTRIBUTIONS, derive_seed, normal, rademacher
from xgblora.ops.update import RULES

CPU = torch.device("cpu")


def loss_at(adapters, objective, batch, values):
    """The mean loss with the adapters at `values`, by the parameters and not by `live`."""
    arena = adapters.arena
    kept = arena.master.clone()
    arena.master.copy_(values)
    arena.read_master()
    with torch.no_grad():
        loss = objective(adapters.model.eval(), batch).double().mean()
    arena.master.copy_(kept)
    return loss


@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
@pytest.mark.parametrize("pairing", ["paired", "sequential"])
def test_a_step_is_the_average_of_g_z_over_directions_made_by_hand(adapters, batch, distribution, pairing):
    eps, lr, seed, steps = 1e-2, 0.05, 42, 2
    zo = xgblora.ZeroOrder(
        adapters,
        squared_errors,
        eps=eps,
        lr=lr,
        directions=4,
        pairing=pairing,
        seed=seed,
        distribution=distribution,
    )
    for step in range(steps):
        theta = adapters.arena.master.clone()
        gradient, wanted, losses = torch.zeros_like(theta), [], []
        for direction in range(4):
            make = {"gaussian": normal, "rademacher": rademacher}[distribution]
            # the first seed of a step gives those of its other directions
            first = derive_seed(seed, step, 0)
            z = make(derive_seed(first, direction) if direction else first, theta.numel(), device=CPU)
            plus, minus = (loss_at(adapters, squared_errors, batch, theta + sign * eps * z) for sign in (1, -1))
            wanted.append((plus - minus) / (2 * eps))
            losses += [plus, minus]
            gradient += wanted[-1] * z / 4
        result = zo.step(batch)
        assert torch.allclose(result.projected_grad.double(), torch.stack(wanted), atol=1e-4)
        assert torch.allclose(result.loss.double(), torch.stack(losses).mean(), rtol=1e-5)
        assert torch.allclose(adapters.arena.master, theta - lr * gradient, atol=1e-5)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("pairing", ["paired", "sequential"])
def test_a_one_sided_step_is_made_by_hand(adapters, batch, pairing, normalise):
    eps, lr, seed, directions = 1e-2, 1e-3, 42, 3
    rows = []

    def objective(model, inputs):
        rows.append(len(inputs["x"]))
        return squared_errors(model, inputs)

    zo = xgblora.ZeroOrder(
        adapters,
        objective,
        eps=eps,
        lr=lr,
        directions=directions,
        pairing=pairing,
        seed=seed,
        distribution="rademacher",
        two_sided=False,
        normalise=normalise,
    )
    theta = adapters.arena.master.clone()
    first = derive_seed(seed, 0, 0)
    seeds = [first, *(derive_seed(first, direction) for direction in range(1, directions))]
    noise = [rademacher(number, theta.numel(), device=CPU) for number in seeds]
    base = loss_at(adapters, squared_errors, batch, theta)
    losses = torch.stack([loss_at(adapters, squared_errors, batch, theta + eps * z) for z in noise])
    wanted = (losses - base) / eps / (losses.std() if normalise else 1.0)
    adapters.arena.read_live(0, 1)
    result = zo.step(batch)
    # the first stacked batch is run both ways before
    assert rows == ([4 * 8, *[8] * 4, 4 * 8] if pairing == "paired" else [8] * 4)
    # a rounding error of a loss is divided by eps, and by the standard deviation
    assert torch.allclose(result.projected_grad.double(), wanted, rtol=1e-3, atol=1e-4)
    assert torch.allclose(result.loss.double(), torch.cat((losses, base.view(1))).mean(), rtol=1e-5)
    gradient = sum(g.float() * z for g, z in zip(wanted, noise, strict=True)) / directions
    assert torch.allclose(adapters.arena.master, theta - lr * gradient, rtol=1e-3, atol=1e-5)
    assert torch.equal(adapters.arena.live, adapters.arena.master.expand(4, -1))


def test_the_projected_gradient_is_the_gradient_along_z(adapters, batch):
    start, z = adapters.arena.master.clone(), normal(derive_seed(5, 0, 0), adapters.arena.master.numel(), device=CPU)
    squared_errors(adapters.model, batch).mean().backward()
    slope = 0.0
    for slot, layer in zip(adapters.arena.slots, adapters.layers.values(), strict=True):
        za, zb = slot.views(z.unsqueeze(0))
        slope += (layer.a.grad * za[0]).sum() + (layer.b.grad * zb[0]).sum()
    result = xgblora.ZeroOrder(adapters, squared_errors, eps=1e-3, lr=0.0, seed=5).step(batch)
    assert torch.allclose(result.projected_grad[0], slope, rtol=1e-2)
    assert torch.equal(adapters.arena.master, start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pairing", ["paired", "sequential"])
def test_zero_learning_rate_leaves_master_and_live_bit_for_bit(make_opt, token_batch, dtype, pairing):
    adapters = xgblora.attach(make_opt(dtype=dtype), alpha=2.0)
    zo = xgblora.ZeroOrder(adapters, next_token_losses, eps=1e-2, lr=0.0, directions=2, pairing=pairing)
    master, live = adapters.arena.master.clone(), adapters.arena.live.clone()
    assert live.dtype == dtype
    with torch.no_grad():
        logits = adapters.model(**token_batch()).logits
        for seed in range(3):
            result = zo.step(token_batch(seed=seed))
            assert torch.any(result.projected_grad != 0)
        assert torch.equal(adapters.arena.master, master)
        assert torch.equal(adapters.arena.live, live)
        assert torch.equal(adapters.model(**token_batch()).logits, logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_after_a_step_live_is_the_cast_of_the_new_master(make_opt, token_batch, dtype):
    adapters = xgblora.attach(make_opt(dtype=dtype), alpha=2.0)
    zo = xgblora.ZeroOrder(adapters, next_token_losses, eps=1e-2, lr=0.1, directions=2)
    before = adapters.arena.master.clone()
    result = zo.step(token_batch())
    assert not torch.equal(adapters.arena.master, before)
    assert torch.equal(adapters.arena.live, adapters.arena.master.to(dtype).expand(4, -1))
    assert result.loss.dtype == result.projected_grad.dtype == adapters.arena.master.dtype == torch.float32
    assert result.loss.shape == ()
    assert result.projected_grad.shape == (2,)


@pytest.mark.parametrize("pairing", ["paired", "sequential"])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, 1.0), (0.25, 0.75)])
def test_accumulated_batches_are_a_weighted_mean_of_losses(adapters, batch, pairing, weights):
    start = adapters.arena.master.clone()
    zo = xgblora.ZeroOrder(adapters, squared_errors, eps=1e-2, lr=0.1, directions=2, pairing=pairing, seed=1)
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 4), slice(4, 8))]
    for half, weight in zip(halves, weights, strict=True):
        assert zo.estimate(half, weight=weight).shape == ()
    result = zo.update()
    share = torch.tensor(weights).repeat_interleave(4) / sum(weights) * 2

    def weighted(model, inputs):
        losses = squared_errors(model, inputs)
        return losses * share.repeat(len(losses) // 8)

    adapters.arena.master.copy_(start)
    whole = xgblora.ZeroOrder(adapters, weighted, eps=1e-2, lr=0.1, directions=2, pairing=pairing, seed=1).step(batch)
    assert torch.allclose(result.loss, whole.loss, rtol=1e-5)
    assert torch.allclose(result.projected_grad, whole.projected_grad, atol=1e-4)
    assert zo.step_index == 1


def test_update_without_an_estimate_is_refused(adapters, batch):
    zo = xgblora.ZeroOrder(adapters, squared_errors)
    with pytest.raises(InputError, match=r"call estimate\(batch\) first"):
        zo.update()
    zo.step(batch)
    with pytest.raises(InputError, match=r"call estimate\(batch\) first"):
        zo.update()


def test_update_takes_a_learning_rate_that_stays(adapters, batch):
    zo = xgblora.ZeroOrder(adapters, squared_errors, lr=0.1)
    start = adapters.arena.master.clone()
    zo.estimate(batch)
    zo.update(lr=0.0)
    zo.step(batch)
    assert torch.equal(adapters.arena.master, start)


def test_weight_decay_is_decoupled_from_the_losses(adapters, batch):
    def constant(model, inputs):
        return torch.ones(len(inputs["x"]))

    start = adapters.arena.master.clone()
    xgblora.ZeroOrder(adapters, constant, lr=0.5, weight_decay=0.5).step(batch)
    assert torch.equal(adapters.arena.master, start * 0.75)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0.0}, "zo_eps=0.0: must be a positive finite number"),
        ({"eps": -1e-3}, "zo_eps=-0.001"),
        ({"eps": math.nan}, "zo_eps=nan"),
        ({"eps": math.inf}, "zo_eps=inf"),
        ({"lr": -1.0}, "learning_rate=-1.0: must be a finite number, 0 or more"),
        ({"lr": math.nan}, "learning_rate=nan"),
        ({"directions": 0}, "directions=0: must be a whole number, 1 or more"),
        ({"directions": 1.5}, "directions=1.5"),
        ({"pairing": "both"}, "pairing=both: must be one of auto, paired, sequential"),
        ({"normalise": True, "directions": 2}, "normalise=True: needs one-sided estimates of 2 or more directions"),
        ({"normalise": True, "two_sided": False}, "normalise=True: needs one-sided estimates of 2 or more directions"),
        ({"optimizer": "lion"}, "optimizer=lion: must be one of sgd, momentum, adam, sign"),
        ({"distribution": "uniform"}, "distribution=uniform: must be one of gaussian, rademacher"),
        ({"weight_decay": math.nan}, "weight_decay=nan: must be a finite number, 0 or more"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(adapters, arguments, message):
    with pytest.raises(InputError, match=f"^{message}") as raised:
        xgblora.ZeroOrder(adapters, squared_errors, **arguments)
    assert "\n" not in str(raised.value)


def run(model, batches, seed):
    adapters = xgblora.attach(model, alpha=2.0)
    zo = xgblora.ZeroOrder(adapters, next_token_losses, eps=1e-2, lr=1e-2, directions=2, seed=seed)
    losses = torch.stack([zo.step(batch).loss for batch in batches])
    return losses, adapters.arena.master


def test_one_seed_gives_one_run_bit_for_bit_and_another_seed_another(make_opt, token_batch):
    batches = [token_batch(seed=step) for step in range(4)]
    losses, master = run(make_opt(), batches, seed=1)
    torch.manual_seed(1234)
    again = run(make_opt(), batches, seed=1)
    other = run(make_opt(), batches, seed=2)
    assert torch.equal(losses, again[0])
    assert torch.equal(master, again[1])
    assert not torch.equal(losses, other[0])
    assert not torch.equal(master, other[1])


def test_torchs_generator_is_left_alone(adapters, batch):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    xgblora.ZeroOrder(adapters, squared_errors).step(batch)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.01), ("momentum", 0.001), ("adam", 0.02), ("sign", 0.01)])
@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_it_learns_a_toy_problem(adapters, batch, distribution, optimizer, lr):
    zo = xgblora.ZeroOrder(
        adapters, squared_errors, lr=lr, directions=4, seed=1, distribution=distribution, optimizer=optimizer
    )
    losses = torch.stack([zo.step(batch).loss for _ in range(200)])
    assert losses[-20:].mean() < 0.6 * losses[:20].mean()


READ_BACKS = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero"}


class ReadBacks(TorchDispatchMode):
    """Counts reads of a number back from the device, inside the operations too."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.name()
        self.count += name in READ_BACKS
        if name.startswith("xgblora::"):
            with self:
                return ops.choose(name.removeprefix("xgblora::").split(".")[0], "cpu").function(*arguments)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("pairing", ["paired", "sequential"])
@pytest.mark.parametrize("optimizer", RULES)
def test_a_step_reads_nothing_back_from_the_device(adapters, batch, pairing, optimizer):
    with ReadBacks() as reads:
        adapters.arena.master.sum().item()
        with torch.no_grad():
            float(adapters.arena.master.sum())
        assert reads.count == 2, "the count works"
    zo = xgblora.ZeroOrder(adapters, squared_errors, pairing=pairing, directions=2, optimizer=optimizer)
    # the first batch that is stacked is tried
    zo.step(batch)
    with ReadBacks() as reads:
        for _ in range(2):
            zo.estimate(batch, weight=0.5)
            zo.estimate(batch, weight=0.5)
            zo.update(lr=1e-3)
    assert reads.count == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda losses: losses.mean().item(), "returned a float: must be a tensor"),
        (lambda losses: losses.tolist(), "returned a list: must be a tensor"),
        (lambda losses: (losses, "more"), "returned a tuple: must be a tensor"),
        (lambda losses: None, "returned a NoneType: must be a tensor"),
        (lambda losses: losses[:0], r"returned no loss, shape \(0,\)"),
    ],
)
@pytest.mark.parametrize("pairing", ["auto", "sequential"])
def test_what_an_objective_gives_is_refused_in_one_line_unless_it_is_losses(adapters, batch, given, message, pairing):
    before = adapters.arena.master.clone()
    zo = xgblora.ZeroOrder(adapters, lambda *on: given(squared_errors(*on)), pairing=pairing)
    with pytest.raises(InputError, match=message):
        zo.step(batch)
    assert torch.equal(adapters.arena.master, before)
    assert torch.equal(adapters.arena.live, before.expand_as(adapters.arena.live)), "nothing is left perturbed"


def test_a_step_of_adapters_that_were_taken_off_is_refused(adapters, batch):
    zo = xgblora.ZeroOrder(adapters, squared_errors)
    zo.step(batch)
    xgblora.detach(adapters.model)
    with pytest.raises(InputError, match="were taken off the model"):
        zo.step(batch)


def test_a_copy_of_a_step_goes_on_as_the_first_one_does(adapters, batch):
    zo = xgblora.ZeroOrder(adapters, squared_errors, lr=0.05)
    zo.step(batch)
    twin = copy.deepcopy(zo)
    assert torch.equal(twin.step(batch).loss, zo.step(batch).loss)
    assert torch.equal(twin.adapters.arena.master, adapters.arena.master)
    layers = zip(twin.adapters.layers.values(), adapters.layers.values(), strict=True)
    assert all(torch.equal(ours.b, theirs.b) for ours, theirs in layers)
