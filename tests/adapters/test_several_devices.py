"""One model on several devices: copies of the adapters on each, and the bits of one device.

Here two devices stand for one memory: the layers of the second say that they lie on "cpu:1", which torch takes for the
CPU and no device but itself is equal to. What they read is then copied as it would be to another GPU. The last test has
two of those.
"""

import pytest
import torch

import xgblora
from xgblora.adapters import Rank1Linear
from xgblora.errors import InputError

HERE, THERE = torch.device("cpu"), torch.device("cpu", 1)
BATCH = {"x": torch.linspace(-1, 1, 20).view(4, 5)}


@pytest.fixture
def in_two_places(monkeypatch):
    """Lets layers of 3 input features lie on the second of two devices."""

    def place(layer):
        return THERE if layer.in_features == 3 else HERE

    monkeypatch.setattr(Rank1Linear, "device", property(place))


def bits_of(booster):
    arena = booster.adapters.arena
    banks = [part for layer in booster.adapters.layers.values() for part in layer.bank or ()]
    return [arena.master, arena.live, *arena.moments.values(), *booster.adapters.weights(), *banks]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"dtype": torch.bfloat16, "rank": 2, "optimizer": "adam", "pairing": "paired"}, id="stacked"),
        pytest.param({"directions": 2, "pairing": "sequential", "rollback": 9}, id="one-after-the-other"),
        pytest.param({"dtype": torch.bfloat16, "rounding": "stochastic"}, id="stochastic"),
        pytest.param({"reinit": "data", "colsample": 0.5}, id="measured"),
        pytest.param({"reinit": "residual"}, id="residual"),
    ],
)
def test_a_run_has_the_bits_of_one_device(train_toy, request, options):
    expected = train_toy(**options)
    request.getfixturevalue("in_two_places")
    booster = train_toy(**options)
    assert booster.adapters.arena.devices == [HERE, THERE]
    assert_same(bits_of(booster), bits_of(expected))
    assert booster.tape.to_bytes() == expected.tape.to_bytes()
    first, second = booster.adapters.layers.values()
    live = booster.adapters.arena.live
    assert first.live[0].untyped_storage().data_ptr() == live.untyped_storage().data_ptr()
    assert second.live[0].untyped_storage().data_ptr() != live.untyped_storage().data_ptr()


def test_layers_elsewhere_read_what_is_written_and_their_own_groups(make_toy, in_two_places):
    adapters = xgblora.attach(make_toy(), ["first", "second"], alpha=2.0)
    arena, second = adapters.arena, adapters.layers["second"]
    arena.allocate_live(3, torch.float32)
    arena.read_live(1, 3, torch.tensor([1, 0, 0, 1], dtype=torch.int32))
    arena.live.copy_(torch.arange(arena.live.numel()).view_as(arena.live))
    arena.spread_live()
    a, b = arena.slots[1].views(arena.live[1:3])
    assert torch.equal(second.live[0], a) and torch.equal(second.live[1], b)
    assert second.group_of_row.tolist() == [1, 0, 0, 1]
    arena.restore()
    assert torch.equal(second.live[0][1], second.a)
    arena.read_one_row()
    assert second.group_of_row is None


def test_backpropagation_reaches_the_arena_from_layers_elsewhere(make_toy, in_two_places):
    adapters = xgblora.attach(make_toy(), ["first", "second"], alpha=2.0)
    layers = adapters.layers.values()
    optimizer = torch.optim.SGD([part for layer in layers for part in (layer.a, layer.b)], lr=0.1)
    before = adapters.arena.master.clone()
    adapters.model(BATCH["x"]).mean().backward()
    optimizer.step()
    for slot in adapters.arena.slots:
        assert not torch.equal(adapters.arena.a_and_b(slot)[1], slot.views(before.unsqueeze(0))[1][0])


def test_a_population_has_the_bits_of_one_device(make_toy, request):
    def steps(kind):
        adapters = xgblora.attach(make_toy(), ["first", "second"], alpha=2.0)
        booster = xgblora.Booster(adapters)
        population = xgblora.Population(adapters, booster, sigma=0.1, lr=0.1, kind=kind)
        rewards = []
        for _ in range(3):
            members = population.ask(4)
            with members.attached(), torch.no_grad():
                rewards.append(-adapters.model(BATCH["x"].repeat(4, 1)).view(4, 4))
            population.tell(rewards[-1])
        return [*bits_of(booster), *rewards]

    expected = [steps(kind) for kind in ("weights", "adapter")]
    request.getfixturevalue("in_two_places")
    for kind, theirs in zip(("weights", "adapter"), expected, strict=True):
        assert_same(steps(kind), theirs)


def test_a_model_that_is_moved_to_one_device_has_no_copies(make_toy, in_two_places):
    adapters = xgblora.attach(make_toy(), ["first", "second"], alpha=2.0)
    arena, second = adapters.arena, adapters.layers["second"]
    arena.allocate_live(2, torch.float32)
    arena.read_one_row()
    arena.move(HERE)
    assert arena.devices == [HERE] and second.live is None
    arena.allocate_live(2, torch.float32)
    arena.read_one_row()
    assert second.live[0].untyped_storage().data_ptr() == arena.live.untyped_storage().data_ptr()


def dispatched(model, **options):
    """`model` with the hooks that `device_map` leaves, all on the CPU."""
    from accelerate import dispatch_model

    return dispatch_model(model, {"": "cpu"}, force_hooks=True, **options)


def test_hooks_that_move_inputs_are_those_of_the_adapted_layers(make_opt, token_batch, randomise_adapters):
    plain, spread = make_opt(), dispatched(make_opt())
    name = "model.decoder.layers.0.self_attn.q_proj"
    assert "forward" in vars(spread.get_submodule(name))
    logits = []
    for model in (plain, spread):
        adapters = xgblora.attach(model, alpha=4.0)
        randomise_adapters(adapters)
        booster = xgblora.Booster(adapters)
        before = model(**token_batch()).logits
        booster.merge()
        logits += [torch.stack((before, model(**token_batch()).logits))]
    assert torch.equal(*logits)
    layer = spread.get_submodule(name)
    assert layer.kind.only_multiplies(layer.base) and hasattr(layer, "_hf_hook") and not hasattr(layer.base, "_hf_hook")
    xgblora.detach(spread)
    assert hasattr(spread.get_submodule(name), "_hf_hook")
    assert torch.equal(spread(**token_batch()).logits, xgblora.detach(plain)(**token_batch()).logits)


def test_a_model_whose_layers_are_offloaded_is_refused(make_opt, tmp_path):
    from accelerate import disk_offload

    model = disk_offload(make_opt(), tmp_path, execution_device=HERE)
    with pytest.raises(InputError, match=r"model\.decoder\.embed_tokens: is offloaded to the") as raised:
        xgblora.attach(model, alpha=4.0)
    assert "\n" not in str(raised.value)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_gpus_have_the_bits_of_one(make_opt, token_batch, dtype):
    from accelerate import dispatch_model

    def objective(model, batch):
        return model(**batch).logits.float().logsumexp(dim=-1).mean(dim=1)

    outcomes = []
    for second in (0, 1):
        names = {"model.decoder.embed_tokens": 0, "model.decoder.embed_positions": 0, "lm_head": 0}
        places = {**names, "model.decoder.layers.0": 0, "model.decoder.layers.1": second}
        model = dispatch_model(make_opt(dtype=dtype), {**places, "model.decoder.final_layer_norm": second})
        booster = xgblora.Booster(xgblora.attach(model, alpha=4.0))
        zo = xgblora.ZeroOrder(booster.adapters, objective, directions=2, lr=1e-2, capture="never")
        tape = xgblora.start_tape(zo, booster)
        batch = {name: value.cuda() for name, value in token_batch().items()}
        for step in range(6):
            zo.step(batch)
            if step % 3 == 2:
                booster.merge(step=step + 1)
        outcomes.append([*(part.cpu() for part in bits_of(booster)), torch.tensor(list(tape.to_bytes()))])
    assert_same(*outcomes)
