"""The boosters of mixtures of experts, loaded by PEFT: experts, dense layers and shared experts beside them."""

import json

import pytest
import torch

import xgblora
from xgblora.boosting.peft_adapter import CONFIG

peft = pytest.importorskip("peft")

TARGETS = {
    "experts": ["gate_up_proj", "experts.down_proj"],
    "one parameter": ["experts.down_proj"],
    "by name": ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj"],
    "all": ["all-linear"],
}


@torch.no_grad()
def logits_of(model):
    texts = torch.randint(5, 97, (4, 10), generator=torch.Generator().manual_seed(1))
    return model(input_ids=texts, use_cache=False).logits


def in_fp64(model):
    """Logits of the same weights computed in fp64, where the order of sums does not show."""
    model = model.double()
    # the grouped product takes no fp64
    model.config._experts_implementation = "eager"
    return logits_of(model)


def assert_same(loaded, merged):
    """Up to the rounding of the merged weights: PEFT keeps its product beside them. Measured: 7e-7 at most.

    In fp32 the two differ by up to 2.7e-6, and the bases alone from themselves in fp64 by 1.5e-6.
    """
    theirs = in_fp64(merged)
    assert (in_fp64(loaded) - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def present(model, targets: list[str]) -> list[str]:
    """Those of `targets` that some layer of the model is called."""
    parameters = [name.removesuffix(".weight") for name, _ in model.named_parameters()]
    return [target for target in targets if any(f".{name}".endswith(f".{target}") for name in parameters)]


@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("targets", TARGETS)
def test_peft_computes_what_base_and_ledger_do(make_mixture, randomise_adapters, tmp_path, targets, rank):
    model = make_mixture()
    before = logits_of(model)
    wanted = TARGETS[targets] if targets == "all" else present(model, TARGETS[targets])
    adapters = xgblora.attach(model, wanted, alpha=1.0)
    booster = xgblora.Booster(adapters)
    for seed in range(1 if rank else 2):
        randomise_adapters(adapters, seed=seed)
        booster.merge()
    trained = logits_of(model)
    assert (trained - before).abs().max() > 0.1
    xgblora.export_peft(booster.ledger, tmp_path / "adapter", base_model=make_mixture(), rank=rank)
    loaded = peft.PeftModel.from_pretrained(make_mixture(), tmp_path / "adapter").eval()
    assert (logits_of(loaded) - trained).abs().max() <= 1e-5 * trained.abs().max()
    assert_same(loaded, xgblora.detach(model, fold=False))


def test_dense_layers_beside_experts_are_parameters_to_peft(make_mixture, randomise_adapters, tmp_path):
    model = make_mixture()
    dense = [name for name, _ in model.named_modules() if name.endswith(("gate_proj", "w1"))]
    if not dense:
        pytest.skip("there is none")
    booster = xgblora.Booster(xgblora.attach(model, dense, alpha=1.0))
    randomise_adapters(booster.adapters)
    booster.merge()
    trained = logits_of(model)
    xgblora.export_peft(booster.ledger, tmp_path / "adapter", base_model=make_mixture())
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert config["target_parameters"] == sorted(f"{name}.weight" for name in dense)
    assert config["target_modules"] == []
    loaded = peft.PeftModel.from_pretrained(make_mixture(), tmp_path / "adapter").eval()
    assert (logits_of(loaded) - trained).abs().max() <= 1e-5 * trained.abs().max()
    assert_same(loaded, xgblora.detach(model, fold=False))


def test_a_model_without_experts_has_no_parameters(make_llama, randomise_adapters, tmp_path):
    model = make_llama()
    booster = xgblora.Booster(xgblora.attach(model, "all-linear", alpha=1.0))
    randomise_adapters(booster.adapters)
    booster.merge()
    xgblora.export_peft(booster.ledger, tmp_path / "adapter", base_model=make_llama())
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert "target_parameters" not in config
    assert config["target_modules"] == list(booster.ledger.origin.layers)
