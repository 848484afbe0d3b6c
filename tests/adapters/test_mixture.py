"""Mixtures of experts: adapters on their parameters are merged, stacked, taken off, and learn like any other."""

import logging

import pytest
import torch

import xgblora
from tests.fixtures.mixtures import tiny_mixture
from xgblora.adapters.mixture import OpenMixture, is_mixture
from xgblora.replaying import rebuild

EXPERTS = ["gate_up_proj", "down_proj"]


def texts():
    return torch.randint(5, 97, (4, 10), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits_of(model):
    return model(input_ids=texts(), use_cache=False).logits


def losses_of(model, batch):
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1].flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, batch["input_ids"][:, 1:].flatten(), reduction="none")
    return losses.view(len(batch["input_ids"]), -1).mean(dim=1)


def test_attaching_changes_no_logit_and_detaching_folds(make_mixture, randomise_adapters):
    model = make_mixture()
    before, modules, weights = logits_of(model), dict(model.named_modules()), list(model.state_dict())
    adapters = xgblora.attach(model, EXPERTS, alpha=1.0, rank=2)
    assert any(".experts.gate_up_proj" in name for name in adapters.layers)
    torch.testing.assert_close(logits_of(model), before, rtol=1e-5, atol=1e-5)
    randomise_adapters(adapters)
    adapted = logits_of(model)
    assert (adapted - before).abs().max() > 0.1
    xgblora.detach(model)
    torch.testing.assert_close(logits_of(model), adapted, rtol=1e-4, atol=1e-4)
    assert dict(model.named_modules()) == modules
    assert list(model.state_dict()) == weights
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_zeroth_order_steps_a_merge_and_base_and_ledger(make_mixture):
    model, batch = make_mixture(), {"input_ids": texts()}
    adapters = xgblora.attach(model, EXPERTS, alpha=4.0)
    booster = xgblora.Booster(adapters)
    base = [weight.clone() for weight in adapters.weights()]
    zo = xgblora.ZeroOrder(adapters, losses_of, eps=1e-2, lr=1e-1, directions=2, seed=1)
    for _ in range(3):
        assert zo.step(batch).projected_grad.abs().min() > 0
    trained = logits_of(model)
    booster.merge()
    torch.testing.assert_close(logits_of(model), trained, rtol=1e-4, atol=1e-4)
    twin = rebuild(make_mixture(), booster.ledger)
    merged = adapters.weights()
    assert all(map(torch.equal, twin.adapters.weights(), merged))
    assert not all(map(torch.equal, base, merged))
    booster.rollback(round=0)
    assert all(map(torch.equal, adapters.weights(), base))


def test_stacked_signs_are_those_of_one_after_the_other(make_mixture, caplog):
    results = []
    for pairing in ("paired", "sequential"):
        adapters = xgblora.attach(make_mixture(), EXPERTS, alpha=4.0)
        zo = xgblora.ZeroOrder(adapters, losses_of, eps=1e-2, pairing=pairing, directions=2, seed=3)
        results.append(zo.step({"input_ids": texts()}).projected_grad)
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-3)


def test_backpropagation_reaches_every_expert_that_is_used(make_mixture, randomise_adapters):
    model = make_mixture()
    adapters = xgblora.attach(model, EXPERTS, alpha=1.0)
    randomise_adapters(adapters)
    losses_of(model, {"input_ids": texts()}).mean().backward()
    for layer in adapters.layers.values():
        assert layer.a.grad.abs().max() > 0
        assert layer.b.grad.abs().max() > 0


def test_all_linear_takes_experts_and_leaves_routers(make_mixture):
    names = list(xgblora.attach(make_mixture(), "all-linear", alpha=1.0).layers)
    assert any(name.endswith("experts.down_proj") for name in names)
    assert not [name for name in names if name.endswith(("router", "gate")) or "router." in name]


def test_what_is_not_adapted_stays_as_it_was_and_a_refusal_leaves_the_model(make_mixture):
    model = make_mixture()
    modules = list(model.modules())
    with pytest.raises(xgblora.errors.InputError, match="matches no linear layer"):
        xgblora.attach(model, ["nothing"], alpha=1.0)
    assert list(model.modules()) == modules
    xgblora.attach(model, [name for name, _ in model.named_modules() if name.endswith("o_proj")], alpha=1.0)
    assert not any(isinstance(module, OpenMixture) for module in model.modules())
    assert any(is_mixture(module) for module in model.modules())


def test_the_log_says_of_how_many_experts(caplog):
    with caplog.at_level(logging.INFO, logger="xgblora"):
        xgblora.attach(tiny_mixture("deepseek_v3"), ["down_proj"], alpha=1.0)
    assert "adapters on 3 layers (down_proj 2, experts.down_proj 1 of 4 experts)" in caplog.messages[0]


def test_the_merged_model_is_saved_and_read_again(make_mixture, randomise_adapters, tmp_path):
    from transformers import AutoModelForCausalLM

    model = make_mixture()
    adapters = xgblora.attach(model, EXPERTS, alpha=1.0)
    booster = xgblora.Booster(adapters)
    randomise_adapters(adapters)
    booster.merge()
    xgblora.detach(model)
    xgblora.export_merged(model, tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(logits_of(again), logits_of(model), rtol=1e-6, atol=1e-6)
