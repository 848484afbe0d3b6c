"""What a measured start looks at: the pull is autograd's, and the model is as it was."""

import pytest
import torch
from torch import nn

import xgblora
from tests.boosting.starts.reader import SAMPLES, Reader, next_words, texts
from tests.zo.toys import next_token_losses
from xgblora.boosting import Samples
from xgblora.boosting.starts import REINITS
from xgblora.boosting.starts.forwards import forwards
from xgblora.boosting.starts.measured_a import adapter_of, some_of

MEASURED = ("data", "residual")


def gradient_at_head(model, batch):
    """Autograd's, of the whole model."""
    kept = []
    model.requires_grad_(True)
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    next_token_losses(model, batch).sum().backward(inputs=[*model.parameters(), *(x.retain_grad() or x for x in kept)])
    hook.remove()
    return kept[0].grad.flatten(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pull_is_minus_the_gradient_of_the_whole_model(make_model, token_batch, dtype):
    batch = token_batch()
    adapters = xgblora.attach(make_model(dtype=dtype), "all-linear", alpha=2.0)
    with torch.no_grad():
        (forward,) = forwards(adapters, Samples(next_token_losses, lambda *_: [batch]), 0, pulls=True)
    expected = gradient_at_head(make_model(dtype=dtype), batch)
    assert expected.any()
    assert torch.allclose(forward.pull, -expected, rtol=1e-4 if dtype is torch.float32 else 2e-2, atol=1e-6)
    assert torch.equal(forward.there, batch["attention_mask"].flatten().bool())


def test_queries_keys_and_values_read_one_input(make_llama, token_batch):
    adapters = xgblora.attach(make_llama(), "all-linear", alpha=2.0)
    with torch.no_grad():
        (forward,) = forwards(adapters, Samples(next_token_losses, lambda *_: [token_batch()]), 0)
    assert forward.pull is None
    readers = [[name.rpartition(".")[2] for name in read.layers] for read in forward.reads]
    assert readers == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]] * 2


def failing(model, batch):
    next_words(model, batch)
    raise RuntimeError("in the middle")


@pytest.mark.parametrize("objective", [next_words, failing])
@pytest.mark.parametrize("reinit", MEASURED)
def test_nothing_of_the_model_is_changed(reinit, objective):
    model = Reader()
    adapters = xgblora.attach(model, ["left", "right", "up"], alpha=2.0)
    adapters.arena.allocate_live(1, torch.float32)
    model.train()
    model.words.eval()
    adapters.layers["left"].a.requires_grad_(False)
    # as in a zeroth-order run
    adapters.arena.allocate_live(1, torch.float32)
    adapters.arena.read_live(0, 1)

    def state():
        return (
            {name: part.clone() for name, part in model.state_dict().items()},
            {name: parameter.requires_grad for name, parameter in model.named_parameters()},
            {name: module.training for name, module in model.named_modules()},
            {name: [*module._forward_pre_hooks, *module._forward_hooks] for name, module in model.named_modules()},
            {name: [part.data_ptr() for part in layer.live] for name, layer in adapters.layers.items()},
            (adapters.arena.master.clone(), adapters.arena.live.clone()),
        )

    before = state()
    with torch.no_grad():
        try:
            REINITS[reinit].measure(adapters, Samples(objective, texts()), 0)
        except RuntimeError as error:
            assert objective is failing
            # the forwards end with what is looking at them
            error.__traceback__ = None
    (weights, *ours, rows), (weights_before, *theirs, rows_before) = state(), before
    assert ours == theirs
    assert all(torch.equal(weights[name], weights_before[name]) for name in weights_before)
    assert all(map(torch.equal, rows, rows_before))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("reinit", MEASURED)
def test_it_looks_at_the_model_in_eval_mode(reinit):
    model, seen = Reader().train(), set()

    def objective(model, batch):
        seen.add(model.training)
        return next_words(model, batch)

    with torch.no_grad():
        adapters = xgblora.attach(model, ["left"], alpha=2.0)
        REINITS[reinit].measure(adapters, Samples(objective, texts()), 0)
    assert seen == {False}
    assert model.training


def test_of_no_rows_there_are_none():
    assert some_of(torch.ones(0, 5), None).shape == (0, 5)
    adapters = xgblora.attach(nn.ModuleDict({"only": nn.Linear(5, 2)}), ["only"], alpha=2.0)
    start = adapter_of(adapters, 0, {"only": torch.ones(1, 5).double()}, {"only": torch.ones(0, 5).double()})
    assert torch.equal(start, adapters.arena.master), "fresh"


def test_a_layer_that_is_called_twice_is_left_out():
    class Twice(Reader):
        def forward(self, ids):
            self.left(self.words(ids))
            return super().forward(ids)

    adapters = xgblora.attach(Twice(), ["left", "right"], alpha=2.0)
    with torch.no_grad():
        seen = [read.layers for forward in forwards(adapters, SAMPLES, 0) for read in forward.reads]
    assert set(seen) == {("right",)}
