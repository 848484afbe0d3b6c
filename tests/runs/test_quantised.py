"""A run on a model whose adapted weights cannot be written: its boosters stay beside them and leave as an adapter."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from xgblora import Ledger, Tape
from xgblora.adapters import attach
from xgblora.boosting import Booster
from xgblora.replaying import replay
from xgblora.runs import prepare as prepare_module


class Quantised(nn.Module):
    """int8 weights with one scale, made from an `nn.Linear`."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().max() / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def quantise(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        if name.endswith(("q_proj", "v_proj")):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Quantised(module))
    return model


def dequantised(folder) -> nn.Module:
    """The model in `folder` with plain layers that hold the rounded weights."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(("q_proj", "v_proj")):
                quantised = Quantised(module)
                module.weight.copy_(quantised.weight.float() * quantised.scale)
    return model


@pytest.fixture
def quantised_run(run_in, tmp_path, monkeypatch):
    """A function `(folder, *flags)` that trains with the adapted layers quantised."""
    load_model = prepare_module.load_model

    def load_quantised(*arguments, **keywords):
        model, tokenizer = load_model(*arguments, **keywords)
        return quantise(model), tokenizer

    monkeypatch.setattr(prepare_module, "load_model", load_quantised)
    return lambda name, *flags: run_in(tmp_path / name, *flags)


FLAGS = ("--xgblora_steps_per_iteration=4", "--max_steps=10", "--save_strategy=steps", "--save_steps=5")


def test_boosters_stay_beside_the_weights_and_leave_as_an_adapter(quantised_run, tiny_model_folder):
    peft = pytest.importorskip("peft")
    run = quantised_run("run", *FLAGS)
    assert any("Quantised" in line and "4" in line for line in run.log), "the log says so"
    assert not (run.folder / "model").exists()
    assert any(line.startswith("adapter: ") for line in run.log)
    base = quantise(AutoModelForCausalLM.from_pretrained(tiny_model_folder)).eval()
    booster, verified = replay(base, Tape.load(run.folder / "tape.bin"))
    assert verified
    assert len(booster.ledger) == 3
    tokens = torch.arange(3, 19).view(2, 8)
    with torch.no_grad():
        replayed = base(tokens).logits
        # PEFT does not know these layers; on dense weights of the same values the adapter does the same
        dense = peft.PeftModel.from_pretrained(dequantised(tiny_model_folder), run.folder / "adapter").eval()
        assert torch.allclose(dense(tokens).logits, replayed, atol=1e-4)
        assert (dequantised(tiny_model_folder)(tokens).logits - replayed).abs().max() > 1e-3


def test_a_resumed_run_has_the_same_boosters(quantised_run, tiny_model_folder):
    whole = quantised_run("whole", *FLAGS)
    resumed = quantised_run("resumed", *FLAGS, f"--resume_from_checkpoint={whole.folder / 'checkpoint-5'}")
    ours, theirs = (Ledger.load(run.folder / "boosters.safetensors") for run in (resumed, whole))
    assert len(ours) == len(theirs) == 3
    assert torch.equal(ours.rows(), theirs.rows())
    assert resumed.losses == whole.losses[5:]


def test_base_and_ledger_are_what_training_left(make_opt, randomise_adapters, token_batch):
    trained = Booster(attach(quantise(make_opt()), alpha=2.0))
    for round in range(3):
        randomise_adapters(trained.adapters, seed=round, std=0.3)
        trained.merge()
    twin = Booster(attach(quantise(make_opt()), alpha=2.0))
    twin.replay(trained.ledger)
    batch = token_batch()
    with torch.no_grad():
        logits = [booster.adapters.model(**batch).logits for booster in (trained, twin)]
        assert torch.equal(*logits)
        trained.rollback(round=0)
        base = quantise(make_opt())(**batch).logits
        assert torch.equal(trained.adapters.model(**batch).logits, base)
        assert (logits[0] - base).abs().max() > 0.05
