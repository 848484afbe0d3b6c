"""A start that is measured on the model, registered from outside the package: recorded, and every bit comes again."""

import pytest
import torch

import xgblora
from xgblora import Ledger
from xgblora.adapters.adapter_set import fresh_adapter
from xgblora.boosting import Samples
from xgblora.boosting.finish import finish
from xgblora.boosting.peft_adapter import export_peft
from xgblora.boosting.starts import REINITS, Measured
from xgblora.errors import InputError
from xgblora.replaying import rebuild, replay
from xgblora.tape import MergeRecord, StartRecord, Tape

LAYERS = ["first", "second"]


class Gradients:
    """A measured start: `a` is the mean input of the layer, and `b` what `objective` says, or zero.

    Attributes:
        b: size of `b`.
        seen: the rounds that were measured, with the loss of the model then.
    """

    def __init__(self, b: float = 0.0):
        self.b, self.seen = b, []

    def __call__(self, adapters, samples, round):
        start, inputs, losses = torch.zeros_like(adapters.arena.master), {}, []
        hooks = [
            layer.register_forward_pre_hook(lambda layer, args, name=name: inputs.setdefault(name, []).append(args[0]))
            for name, layer in adapters.layers.items()
        ]
        for batch in samples.batches(round, 8):
            losses.append(samples.objective(adapters.model, batch).mean())
        for hook in hooks:
            hook.remove()
        for slot in adapters.arena.slots:
            a, b = slot.views(start.unsqueeze(0))
            a.copy_(torch.cat(inputs[slot.name]).float().mean(dim=0).expand_as(a))
            b.fill_(self.b * float(torch.stack(losses).mean()))
        self.seen.append((round, float(torch.stack(losses).mean())))
        return start


def objective(model, batch):
    return model(batch["x"])


def batches(round, examples):
    generator = torch.Generator().manual_seed(100 + round)
    return [{"x": torch.randn(4, 5, generator=generator)} for _ in range(examples // 4)]


@pytest.fixture(params=[0.0, 0.05], ids=["b zero", "b not zero"])
def measure(request, monkeypatch):
    """The strategy `inputs`, registered for the test; with `b` at zero, and with one that the base takes back."""
    measure = Gradients(request.param)
    monkeypatch.setitem(REINITS, "inputs", Measured(measure, starts_at_zero=request.param == 0.0))
    return measure


def make_run(make_toy, *, dtype=torch.float32, rank=1, colsample=1.0, samples=True):
    adapters = xgblora.attach(make_toy(dtype), LAYERS, alpha=2.0, rank=rank, seed=5)
    booster = xgblora.Booster(
        adapters, reinit="inputs", colsample=colsample, samples=Samples(objective, batches) if samples else None
    )
    zo = xgblora.ZeroOrder(adapters, objective, eps=1e-2, lr=0.05, optimizer="adam", seed=5)
    return booster, zo


def train(booster, zo, first=1, last=10, merge_every=3):
    """Steps `first` to `last`; each has a batch of its own."""
    for step in range(first, last + 1):
        zo.step_index = step
        zo.step({"x": torch.randn(4, 5, generator=torch.Generator().manual_seed(step))})
        if step % merge_every == 0:
            booster.merge(step=step)


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(params=[10, 9], ids=["in a round", "at a merge"])
def trained(request, measure, make_toy, tmp_path):
    """A function that makes a run of 3 rounds, and a step of a fourth or none: its booster, finished, and its files."""

    def make(**options):
        booster, zo = make_run(make_toy, **options)
        xgblora.start_tape(zo, booster)
        train(booster, zo, last=request.param)
        assert booster.is_trained() == (request.param == 10)
        finish(booster.adapters, booster, step=request.param, epoch=1.0)
        booster.ledger.save(tmp_path / "ledger.safetensors")
        booster.tape.save(tmp_path / "tape.bin")
        return booster, Ledger.load(tmp_path / "ledger.safetensors"), Tape.load(tmp_path / "tape.bin")

    return make


@pytest.mark.parametrize(
    "options",
    [{}, {"rank": 2}, {"dtype": torch.bfloat16}, {"colsample": 0.5}],
    ids=str,
)
def test_base_and_ledger_and_base_and_tape_are_the_trained_weights(trained, measure, make_toy, options):
    booster, ledger, tape = trained(**options)
    wanted, dtype = booster.adapters.weights(), options.get("dtype", torch.float32)
    assert [round for round, _ in measure.seen] == [0, 1, 2, 3], "once a round, and not again for what is over"
    from_ledger = rebuild(make_toy(dtype), ledger)
    from_tape, verified = replay(make_toy(dtype), tape)
    assert verified
    assert same(from_ledger.adapters.weights(), wanted)
    assert same(from_tape.adapters.weights(), wanted)
    assert torch.equal(from_tape.ledger.rows(), booster.ledger.rows())
    assert list(from_tape.ledger.measured) == list(ledger.measured) == [0, 1, 2, 3]
    for round in ledger.measured:
        assert torch.equal(from_tape.ledger.measured[round], booster.ledger.measured[round])
        assert torch.equal(ledger.measured[round], booster.ledger.measured[round])
    assert [round for round, _ in measure.seen] == [0, 1, 2, 3], "nothing is measured to get them again"


def test_the_start_is_that_of_the_model_with_all_boosters(measure, make_toy):
    booster, zo = make_run(make_toy)
    train(booster, zo, last=3)
    (round, loss), start = measure.seen[1], booster.adapters.arena.master.clone()
    assert round == 1
    assert torch.equal(start, booster.ledger.measured[1])
    assert not torch.equal(start, fresh_adapter(booster.ledger.slots, 5, 1, torch.device("cpu")))
    with torch.no_grad():
        now = torch.stack([objective(booster.adapters.model, batch).mean() for batch in batches(1, 8)]).mean()
        assert float(now) == pytest.approx(loss, rel=1e-5), "its start changes nothing of what the model computes"
    assert torch.equal(booster.adapters.arena.live, start.expand_as(booster.adapters.arena.live))


def test_a_merge_may_leave_the_start_to_what_follows(measure, make_toy):
    (booster, zo), (later, other) = make_run(make_toy), make_run(make_toy)
    for one, steps in ((booster, zo), (later, other)):
        train(one, steps, last=2)
    booster.merge(step=2)
    later.merge(step=2, begins=False)
    assert later.awaits_start
    assert list(later.ledger.measured) == [0]
    assert not later.is_trained()
    later.begin()
    assert torch.equal(later.adapters.arena.master, booster.adapters.arena.master)
    assert same(later.adapters.weights(), booster.adapters.weights())


def test_a_run_goes_on_from_its_ledger_in_the_middle_of_a_round(measure, make_toy, tmp_path):
    whole, zo = make_run(make_toy)
    train(whole, zo, last=5)
    # what a checkpoint holds
    whole.ledger.save(tmp_path / "ledger.safetensors")
    master = whole.adapters.arena.master.clone()
    moments = {name: moment.clone() for name, moment in whole.adapters.arena.moments.items()}
    train(whole, zo, first=6, last=10)
    resumed, zo = make_run(make_toy)
    measured = len(measure.seen)
    resumed.load_ledger(tmp_path / "ledger.safetensors")
    assert len(measure.seen) == measured
    resumed.adapters.arena.master.copy_(master)
    for name, moment in moments.items():
        resumed.adapters.arena.moments[name].copy_(moment)
    resumed.adapters.arena.restore()
    train(resumed, zo, first=6, last=10)
    assert torch.equal(resumed.adapters.arena.master, whole.adapters.arena.master)
    assert same(resumed.adapters.weights(), whole.adapters.weights())
    assert list(resumed.ledger.measured) == [0, 1, 2, 3]


def test_a_rollback_is_the_round_as_it_was_and_is_replayed(measure, make_toy):
    booster, zo = make_run(make_toy)
    xgblora.start_tape(zo, booster)
    train(booster, zo, last=6)
    start, weights = booster.adapters.arena.master.clone(), [weight.clone() for weight in booster.adapters.weights()]
    train(booster, zo, first=7, last=10)
    booster.rollback(round=2)
    assert torch.equal(booster.adapters.arena.master, start)
    assert same(booster.adapters.weights(), weights)
    assert list(booster.ledger.measured) == [0, 1, 2]
    train(booster, zo, first=11, last=13)
    assert [round for round, _ in measure.seen] == [0, 1, 2, 3, 3]
    finish(booster.adapters, booster, step=13, epoch=1.0)
    again, verified = replay(make_toy(), booster.tape)
    assert verified
    assert same(again.adapters.weights(), booster.adapters.weights())
    # and from the ledger of the rounds that are left
    rebuilt = rebuild(make_toy(), booster.ledger)
    rebuilt.rollback(round=2)
    assert torch.equal(rebuilt.adapters.arena.master, start)


def test_the_tape_of_a_stopped_run_is_replayed_and_what_is_left_is_merged(measure, make_toy):
    booster, zo = make_run(make_toy)
    xgblora.start_tape(zo, booster)
    train(booster, zo, last=8)
    again, verified = replay(make_toy(), booster.tape)
    assert not verified
    assert torch.equal(again.adapters.arena.master, booster.adapters.arena.master)
    for one in (again, booster):
        assert finish(one.adapters, one, step=8, epoch=1.0)
    assert same(again.adapters.weights(), booster.adapters.weights())


def test_the_first_start_stands_at_the_beginning_of_the_tape_and_each_other_after_a_merge(trained):
    booster, _, tape = trained()
    kinds = [record for record in tape.records() if isinstance(record, MergeRecord | StartRecord)]
    starts = [record.adapter for record in kinds if isinstance(record, StartRecord)]
    assert isinstance(next(tape.records()), StartRecord)
    assert [type(record) for record in kinds[:7]] == [StartRecord, *[MergeRecord, StartRecord] * 3]
    assert len(kinds) == 7 + len(booster.ledger) - 3
    assert all(map(torch.equal, starts, booster.ledger.measured.values()))


def test_the_first_rounds_and_their_starts_make_a_ledger(trained, measure, make_toy):
    _, ledger, _ = trained()
    two = ledger.first(2)
    assert (len(two), list(two.measured)) == (2, [0, 1, 2])
    straight, zo = make_run(make_toy)
    train(straight, zo, last=6)
    straight.end()
    assert same(rebuild(make_toy(), two).adapters.weights(), straight.adapters.weights())


def test_peft_computes_what_the_merged_model_does(trained, make_toy, tmp_path):
    peft = pytest.importorskip("peft")
    booster, ledger, _ = trained()
    export_peft(ledger, tmp_path / "adapter", task_type=None)
    adapted = peft.PeftModel.from_pretrained(make_toy(), tmp_path / "adapter")
    probe = torch.randn(6, 5, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        assert torch.allclose(adapted(probe), booster.adapters.model(probe), rtol=1e-5, atol=1e-6)


def test_without_a_measured_start_the_files_say_nothing_of_one(train_toy, tmp_path):
    booster = train_toy(reinit="orthogonal")
    booster.ledger.save(tmp_path / "ledger.safetensors")
    assert b"measured" not in (tmp_path / "ledger.safetensors").read_bytes()
    assert b"start_a" not in (tmp_path / "ledger.safetensors").read_bytes()
    assert not any(isinstance(record, StartRecord) for record in booster.tape.records())


class TestWhatIsRefused:
    def test_a_merge_without_samples_and_nothing_was_merged(self, measure, make_toy):
        booster, zo = make_run(make_toy, samples=False)
        train(booster, zo, last=2)
        before = [weight.clone() for weight in booster.adapters.weights()]
        with pytest.raises(InputError, match=r"^reinit=inputs: measures how a round starts; give Booster\(samples="):
            booster.begin()
        with pytest.raises(InputError, match=r"^reinit=inputs: the start of round 1 was not measured; begin"):
            booster.merge()
        assert same(booster.adapters.weights(), before)
        assert len(booster.ledger) == 0
        # where no round follows nothing has to be measured
        assert finish(booster.adapters, booster, step=2, epoch=1.0)

    def test_a_start_for_a_strategy_that_does_not_measure(self, make_toy):
        booster = xgblora.Booster(xgblora.attach(make_toy(), LAYERS, alpha=2.0))
        with pytest.raises(InputError, match=r"^start: with reinit=kaiming round 1 awaits none$"):
            booster.begin(booster.adapters.arena.master)

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda master: master[:-1], "a start must be finite fp32"),
            (lambda master: master.double(), "a start must be finite fp32"),
            (lambda master: master * float("nan"), "a start must be finite fp32"),
            (lambda master: torch.ones_like(master), "says that b starts at zero, and gave one that does not"),
        ],
    )
    def test_what_is_no_start(self, monkeypatch, make_toy, make, said):
        strategy = Measured(lambda adapters, samples, round: make(adapters.arena.master.clone()))
        monkeypatch.setitem(REINITS, "inputs", strategy)
        with pytest.raises(InputError, match=f"^reinit=inputs: {said}"):
            make_run(make_toy)

    def test_a_ledger_in_which_a_start_was_changed(self, trained, tmp_path):
        _, ledger, _ = trained()
        ledger.measured[2] *= 2
        path = tmp_path / "ledger.safetensors"
        before = path.read_bytes()
        ledger.save(path)
        # the header of the one, with its sha256, over the numbers of the other
        length = 8 + int.from_bytes(before[:8], "little")
        path.write_bytes(before[:length] + path.read_bytes()[length:])
        with pytest.raises(InputError, match="sha256 does not fit"):
            Ledger.load(path)
