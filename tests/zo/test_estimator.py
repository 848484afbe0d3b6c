"""Estimators: those of the package as objects, and one of another kind, a direction an example, from outside of it."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import xgblora
from xgblora.boosting.finish import finish
from xgblora.errors import InputError
from xgblora.objectives.texts import CandidateObjective
from xgblora.ops.noise import DISTRIBUTIONS
from xgblora.replaying import replay
from xgblora.scoring import Collator, EncodedExample
from xgblora.tape import StepRecord
from xgblora.zo import OneSided, TwoSided
from xgblora.zo.estimator import direction_seeds

CPU = torch.device("cpu")
EPS = 1e-2


@dataclass(frozen=True)
class OfExamples:
    """A direction of its own for each example, on both sides."""

    directions: int
    name: ClassVar[str] = "of_examples"
    forwards: ClassVar[int] = 2

    @property
    def signs(self):
        return (*(1.0,) * self.directions, *(-1.0,) * self.directions)

    @property
    def noise(self):
        return (*range(self.directions), *range(self.directions))

    def groups(self, examples):
        if examples is None or examples > self.directions:
            raise InputError(f"per_device_train_batch_size={examples}: must be {self.directions} or fewer")
        return examples

    def projected_grads(self, losses, eps):
        plus, minus = losses.view(2, self.directions)
        return (plus - minus) / (2.0 * eps)


def of_rows(model, batch):
    return model(batch["x"])


@pytest.fixture
def examples():
    return {"x": torch.randn(4, 5, generator=torch.Generator().manual_seed(1))}


@pytest.fixture
def adapters(make_toy, randomise_adapters):
    adapters = xgblora.attach(make_toy(), ["first", "second"], alpha=2.0)
    randomise_adapters(adapters, std=0.5)
    return adapters


def loss_at(adapters, batch, values):
    """The losses with the adapters at `values`, by the parameters and not by `live`; fp64 [B]."""
    arena = adapters.arena
    kept = arena.master.clone()
    arena.master.copy_(values)
    arena.read_master()
    with torch.no_grad():
        losses = of_rows(adapters.model, batch).double()
    arena.master.copy_(kept)
    return losses


@pytest.mark.parametrize(
    ("estimator", "arguments", "forwards"),
    [
        (TwoSided(), {}, 2),
        (TwoSided(3), {"directions": 3}, 6),
        (OneSided(), {"two_sided": False}, 2),
        (OneSided(3), {"directions": 3, "two_sided": False}, 4),
        (OneSided(3, normalise=True), {"directions": 3, "two_sided": False, "normalise": True}, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("pairing", ["paired", "sequential"])
def test_an_estimator_is_what_the_arguments_say(adapters, examples, estimator, arguments, forwards, pairing):
    start, results = adapters.arena.master.clone(), []
    for how in (arguments, {"estimator": estimator}):
        adapters.arena.master.copy_(start)
        zo = xgblora.ZeroOrder(adapters, of_rows, eps=EPS, lr=0.1, seed=3, pairing=pairing, **how)
        assert (zo.estimator, zo.directions, zo.forwards) == (estimator, estimator.directions, forwards)
        assert zo.two_sided == isinstance(estimator, TwoSided)
        results.append((zo.step(examples).projected_grad, adapters.arena.master.clone()))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(results[0][1], start)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TwoSided(0), "directions=0: must be a whole number, 1 or more"),
        (lambda: OneSided(1.5), "directions=1.5: must be a whole number, 1 or more"),
        (lambda: OneSided(1, normalise=True), "normalise=True: needs one-sided estimates of 2 or more directions"),
    ],
)
def test_an_estimator_that_cannot_be_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


class Broken(OfExamples):
    """As `OfExamples`, with attributes replaced."""

    def __init__(self, **replaced):
        super().__init__(2)
        object.__setattr__(self, "replaced", replaced)

    def __getattribute__(self, name):
        replaced = object.__getattribute__(self, "__dict__").get("replaced", {})
        return replaced[name] if name in replaced else object.__getattribute__(self, name)


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (OfExamples, "estimator=of_examples: must be an object with directions"),
        ("two_sided", "estimator=str: must be an object with name, directions"),
        (Broken(directions=0), "directions=0: must be a whole number"),
        (Broken(forwards=3), "estimator=of_examples: forwards=3 must divide its 4 signs"),
        (Broken(noise=(0, 1, 2)), "estimator=of_examples: its 3 numbers of noise must divide its 4 signs"),
        (Broken(noise=(1, 0, 1, 0)), r"estimator=of_examples: noise=\(1, 0, 1, 0\) must begin with 0 to 1"),
    ],
    ids=str,
)
def test_an_estimator_whose_numbers_do_not_fit_is_refused_by_name(adapters, estimator, said):
    """The last would train, and its tape would replay other directions."""
    with pytest.raises(InputError, match=said):
        xgblora.ZeroOrder(adapters, of_rows, estimator=estimator)


@pytest.mark.parametrize("groups", [0, 3, None])
def test_groups_that_there_are_no_rows_for_are_refused_before_anything_is_perturbed(adapters, examples, groups):
    zo = xgblora.ZeroOrder(adapters, of_rows, estimator=Broken(groups=lambda examples: groups))
    with pytest.raises(InputError, match=f"estimator=of_examples: groups={groups} must be from 1 to 2"):
        zo.step(examples)
    assert torch.equal(adapters.arena.live, adapters.arena.master.expand(4, -1))


def test_full_parameters_have_no_direction_an_example(make_toy, examples):
    zo = xgblora.ZeroOrder(xgblora.FullParameters(make_toy()), of_rows, estimator=OfExamples(4))
    with pytest.raises(InputError, match="estimator=of_examples: full parameters hold one row at a time, not 4"):
        zo.step(examples)


@pytest.mark.parametrize("given", [{"directions": 2}, {"two_sided": False}, {"normalise": True}])
def test_arguments_that_the_estimator_decides_are_refused_beside_it(adapters, given):
    with pytest.raises(InputError, match="estimator=two_sided: decides directions, two_sided and normalise"):
        xgblora.ZeroOrder(adapters, of_rows, estimator=TwoSided(2), **given)


class TestADirectionAnExample:
    """`OfExamples` is none of the package, and takes nothing from it but the contract."""

    @pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
    @pytest.mark.parametrize("pairing", ["auto", "paired", "sequential"])
    @pytest.mark.parametrize("count", [4, 3])
    def test_a_step_is_made_by_hand(self, adapters, examples, pairing, distribution, count):
        zo = xgblora.ZeroOrder(
            adapters,
            of_rows,
            eps=EPS,
            lr=0.1,
            seed=3,
            pairing=pairing,
            distribution=distribution,
            estimator=OfExamples(4),
        )
        examples = {"x": examples["x"][:count]}
        theta, made = adapters.arena.master.clone(), []
        wanted, gradient, losses = torch.zeros(4).double(), torch.zeros_like(theta), []
        for number, seed in enumerate(direction_seeds(xgblora.ops.noise.derive_seed(3, 0, 0), 4)[:count]):
            z = DISTRIBUTIONS[distribution](seed, theta.numel(), device=CPU)
            made.append(z)
            plus, minus = (loss_at(adapters, examples, theta + sign * EPS * z)[number] for sign in (1, -1))
            wanted[number] = (plus - minus) / (2 * EPS)
            losses += [plus, minus]
            gradient += wanted[number].float() * z / 4
        adapters.arena.read_one_row()
        loss = zo.estimate(examples)
        result = zo.update()
        assert not torch.equal(made[0], made[1])
        assert torch.allclose(loss.double(), torch.stack(losses).mean(), rtol=1e-5)
        assert torch.allclose(result.loss, loss, rtol=1e-6)
        assert torch.allclose(result.projected_grad.double(), wanted, atol=1e-4)
        assert torch.allclose(adapters.arena.master, theta - 0.1 * gradient, atol=1e-5)

    @pytest.mark.parametrize("pairing", ["paired", "sequential"])
    def test_a_run_is_replayed_from_its_tape(self, make_toy, pairing):
        adapters = xgblora.attach(make_toy(), ["first", "second"], alpha=2.0, seed=5)
        booster = xgblora.Booster(adapters)
        zo = xgblora.ZeroOrder(adapters, of_rows, eps=EPS, lr=0.05, pairing=pairing, estimator=OfExamples(4))
        tape = xgblora.start_tape(zo, booster)
        generator = torch.Generator().manual_seed(5)
        for step in range(1, 10):
            zo.step({"x": torch.randn(3 if step % 4 == 0 else 4, 5, generator=generator)})
            if step % 4 == 0:
                booster.merge(step=step)
        finish(adapters, booster, step=9, epoch=1.0)
        steps = [record for record in tape.records() if isinstance(record, StepRecord)]
        assert [len(record.projected_grads) for record in steps] == [4] * 9
        assert [record.projected_grads[3] == 0 for record in steps] == [step % 4 == 0 for step in range(1, 10)]
        again, verified = replay(make_toy(), tape)
        assert verified
        assert all(map(torch.equal, again.adapters.weights(), adapters.weights()))

    @pytest.mark.parametrize("pairing", ["paired", "sequential"])
    def test_examples_of_a_language_model_do_not_share_a_row_of_the_grid(self, make_opt, randomise_adapters, pairing):
        """What runs packed for one adapter is padded for an adapter an example: each has its share of the rows."""
        model = make_opt()
        examples = [
            EncodedExample(((5, 9, *range(2, length)),), ((0, length - 1),), (((0, 7),), ((0, 8),)), length % 2)
            for length in (3, 9, 4, 6)
        ]
        batch, alone = Collator(0)(examples), [Collator(0)([example]) for example in examples]
        objective = CandidateObjective(model)
        assert objective.packs
        adapters = xgblora.attach(model, alpha=2.0)
        randomise_adapters(adapters)
        options = {"eps": EPS, "lr": 0.0, "seed": 3}
        zo = xgblora.ZeroOrder(adapters, objective, pairing=pairing, estimator=OfExamples(4), **options)
        result = zo.step(batch)
        # the same directions one after the other, all of them for each example
        four = xgblora.ZeroOrder(adapters, objective, pairing="sequential", directions=4, **options)
        wanted = []
        for number, example in enumerate(alone):
            four.step_index = 0
            wanted.append(four.step(example).projected_grad[number])
        assert torch.allclose(result.projected_grad, torch.stack(wanted), atol=1e-3)
        assert result.projected_grad.abs().min() > 1e-2

    @pytest.mark.parametrize("pairing", ["auto", "sequential"])
    def test_an_objective_without_a_loss_an_example_is_refused(self, adapters, examples, pairing):
        def scalar(model, batch):
            return of_rows(model, batch).mean()

        zo = xgblora.ZeroOrder(adapters, scalar, pairing=pairing, estimator=OfExamples(4))
        with pytest.raises(InputError, match=r"estimator=of_examples: the objective must return one loss an example"):
            zo.step(examples)
        assert torch.equal(adapters.arena.live, adapters.arena.master.expand(8, -1)), "the model is unperturbed"

    def test_batches_that_it_refuses_are_refused_before_anything_is_perturbed(self, adapters, examples):
        zo = xgblora.ZeroOrder(adapters, of_rows, estimator=OfExamples(3))
        for batch in (examples, [examples["x"]]):
            with pytest.raises(InputError, match="must be 3 or fewer"):
                zo.step(batch)
            assert torch.equal(adapters.arena.live, adapters.arena.master.expand(6, -1))
