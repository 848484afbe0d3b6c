"""Forwards of a step stacked or one after the other: the same estimate, and which batches and objectives allow it."""

import logging

import pytest
import torch

import xgblora
from tests.zo.toys import next_token_losses, squared_errors
from xgblora.errors import InputError
from xgblora.zo.zero_order import AUTO_PAIRING_ELEMENTS


@pytest.mark.parametrize("directions", [1, 3])
def test_paired_and_sequential_estimate_the_same_on_a_language_model(language_model, token_batch, directions):
    results, masters = [], []
    start = language_model.arena.master.clone()
    for pairing in ("paired", "sequential"):
        language_model.arena.master.copy_(start)
        zo = xgblora.ZeroOrder(
            language_model, next_token_losses, eps=1e-2, lr=1e-2, directions=directions, pairing=pairing, seed=3
        )
        language_model.model.train()  # dropout must not reach the losses
        results.append(zo.step(token_batch()))
        masters.append(language_model.arena.master.clone())
    paired, sequential = results
    assert paired.projected_grad.abs().min() > 1e-3
    assert torch.allclose(paired.loss, sequential.loss, rtol=1e-6)
    # a rounding error of a loss is divided by 2 eps
    assert torch.allclose(paired.projected_grad, sequential.projected_grad, atol=1e-6 / 2e-2 * 4)
    assert torch.allclose(masters[0], masters[1], atol=1e-5)


def test_a_scalar_objective_runs_one_after_the_other_and_gives_the_same(adapters, batch, caplog):
    calls = []

    def scalar(model, inputs):
        calls.append(len(inputs["x"]))
        return squared_errors(model, inputs).mean()

    start = adapters.arena.master.clone()
    by_example = xgblora.ZeroOrder(adapters, squared_errors, eps=1e-2, lr=0.1, directions=2).step(batch)
    adapters.arena.master.copy_(start)
    zo = xgblora.ZeroOrder(adapters, scalar, eps=1e-2, lr=0.1, directions=2)
    with caplog.at_level(logging.INFO, logger="xgblora"):
        result = zo.step(batch)
        calls.clear()
        zo.step(batch)
    assert torch.allclose(result.projected_grad, by_example.projected_grad, atol=1e-4)
    assert calls == [8, 8, 8, 8], "one forward for each sign and direction, none stacked"
    assert len([record for record in caplog.records if "one after the other" in record.message]) == 1


def test_an_objective_that_drops_examples_is_never_paired(adapters, batch):
    def drops_first(model, inputs):
        return squared_errors(model, inputs)[inputs["x"][:, 0] > 0]

    kept = batch["x"][:, 0] > 0
    assert 0 < kept.sum() < 8
    start = adapters.arena.master.clone()
    result = xgblora.ZeroOrder(adapters, drops_first, eps=1e-2, seed=2).step(batch)
    adapters.arena.master.copy_(start)
    wanted = xgblora.ZeroOrder(adapters, squared_errors, eps=1e-2, seed=2).step({k: v[kept] for k, v in batch.items()})
    assert torch.allclose(result.projected_grad, wanted.projected_grad, atol=1e-4)


def test_the_objective_need_not_be_differentiable(adapters, batch):
    def misses(model, inputs):
        assert not torch.is_grad_enabled()
        return ((model(inputs["x"]) > 0) != (inputs["y"] > 0)).long()

    result = xgblora.ZeroOrder(adapters, misses, eps=0.5, lr=0.1).step(batch)
    assert result.loss.isfinite()


@pytest.mark.parametrize(
    "unusable",
    [
        lambda batch: (batch["x"], batch["y"]),
        lambda batch: {**batch, "y": batch["y"][:3]},
        lambda batch: {"x": torch.tensor(1.0)},
        lambda batch: {"names": ["a", "b"]},
    ],
)
def test_a_batch_that_cannot_be_stacked_is_refused_by_paired(adapters, batch, unusable):
    zo = xgblora.ZeroOrder(adapters, squared_errors, pairing="paired")
    with pytest.raises(InputError, match="pairing=paired: the batch must be a mapping of tensors"):
        zo.step(unusable(batch))


def test_a_batch_that_cannot_be_stacked_runs_one_after_the_other_under_auto(adapters, batch):
    def by_position(model, inputs):
        return (model(inputs[0]) - inputs[1]).square()

    start = adapters.arena.master.clone()
    result = xgblora.ZeroOrder(adapters, by_position, eps=1e-2).step((batch["x"], batch["y"]))
    adapters.arena.master.copy_(start)
    wanted = xgblora.ZeroOrder(adapters, squared_errors, eps=1e-2, pairing="sequential").step(batch)
    assert torch.equal(result.projected_grad, wanted.projected_grad)


@pytest.mark.parametrize("reduce", [torch.mean, lambda losses: losses.mean().view(1)])
def test_an_objective_without_a_loss_an_example_is_refused_by_paired(adapters, batch, reduce):
    zo = xgblora.ZeroOrder(adapters, lambda model, inputs: reduce(squared_errors(model, inputs)), pairing="paired")
    with pytest.raises(InputError, match="pairing=paired: the objective must return one loss an example"):
        zo.step(batch)


@pytest.mark.parametrize("pairing", ["paired", "sequential"])
def test_a_failing_objective_leaves_the_model_unperturbed(adapters, batch, pairing):
    def objective(model, inputs):
        losses = squared_errors(model, inputs)
        if fails:
            raise RuntimeError("out of memory")
        return losses

    fails = False
    zo = xgblora.ZeroOrder(adapters, objective, eps=0.1, lr=0.1, pairing=pairing)
    with torch.no_grad():
        # three rows: they fall into one group, and not into two
        before, start = adapters.model(batch["x"][:3]), adapters.arena.master.clone()
        fails = True
        with pytest.raises(RuntimeError, match="out of memory"):
            zo.step(batch)
        assert torch.equal(adapters.model(batch["x"][:3]), before)
    with pytest.raises(InputError, match="call estimate"):
        zo.update()
    fails = False
    result = zo.step(batch)
    adapters.arena.master.copy_(start)
    fresh = xgblora.ZeroOrder(adapters, objective, eps=0.1, lr=0.1, pairing=pairing).step(batch)
    assert torch.equal(result.projected_grad, fresh.projected_grad), "the step that failed is taken again"


def test_auto_pairs_small_batches_only(adapters, batch):
    rows = []

    def objective(model, inputs):
        rows.append(len(inputs["x"]))
        return squared_errors(model, inputs)

    zo = xgblora.ZeroOrder(adapters, objective, directions=2)
    zo.step(batch)
    rows.clear()
    zo.step(batch)
    assert rows == [4 * 8]
    rows.clear()
    many = AUTO_PAIRING_ELEMENTS // (4 * 6) + 1
    zo.step({"x": torch.randn(many, 6), "y": torch.randn(many)})
    assert rows == [many] * 4


def test_what_is_no_tensor_in_a_batch_is_passed_as_it_is(adapters, batch):
    def objective(model, inputs):
        assert inputs["note"] == "kept"
        return squared_errors(model, inputs)

    xgblora.ZeroOrder(adapters, objective, pairing="paired").step({"note": "kept", **batch})


class TokensFirst(torch.nn.Module):
    """Gives its layer the tokens first and the examples second, as XLNet does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = torch.nn.Linear(6, 6), torch.nn.Linear(6, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.layer(x.transpose(0, 1)).transpose(0, 1)))[..., 0].mean(dim=1)


def losses_of_texts(model, inputs):
    return (model(inputs["x"]) - inputs["y"]) ** 2


def test_a_model_that_has_the_tokens_first_runs_one_after_the_other(caplog):
    batch = {"x": torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)), "y": torch.arange(4.0)}
    results = []
    for pairing in ("auto", "sequential"):
        adapters = xgblora.attach(TokensFirst(), ["layer"], alpha=4.0)
        zo = xgblora.ZeroOrder(adapters, losses_of_texts, eps=1e-2, pairing=pairing, directions=2, seed=1)
        with caplog.at_level(logging.INFO, logger="xgblora"):
            results.append(zo.step(batch).projected_grad)
    assert torch.equal(*results)
    assert [line for line in caplog.messages if "one after the other (stacked, their losses are others)" in line]
    zo = xgblora.ZeroOrder(adapters, losses_of_texts, eps=1e-2, pairing="paired", directions=2)
    with pytest.raises(InputError, match="pairing=paired: stacked signs have other losses than one after the other"):
        zo.step(batch)
