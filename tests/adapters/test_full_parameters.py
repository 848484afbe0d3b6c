"""`FullParameters`: a step is MeZO's, a restore is exact, what cannot be trained so is refused."""

import pytest
import torch
from torch import nn

import xgblora
from xgblora import ops
from xgblora.errors import InputError
from xgblora.ops.noise import normal
from xgblora.zo.estimator import direction_seeds


def loss_of(model, batch):
    """fp32 [B]: what the model says against some fixed direction, so that every parameter matters."""
    logits = model(**batch).logits.float()
    return (logits * torch.arange(logits.shape[-1]).cos()).mean(dim=(1, 2))


def parameters_of(model) -> dict:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_stays_what_it_was(make_model, token_batch, dtype):
    model, same = make_model(dtype=dtype), make_model(dtype=dtype)
    full = xgblora.FullParameters(model)
    with torch.no_grad():
        assert torch.equal(model(**token_batch()).logits, same(**token_batch()).logits)
    assert_same(parameters_of(model), parameters_of(same))
    assert full.num_parameters() == sum(parameter.numel() for parameter in same.parameters())
    assert (full.arena.master.dtype, full.compute_dtype) == (torch.float32, dtype)
    storage = full.arena.live.untyped_storage().data_ptr()
    assert {parameter.untyped_storage().data_ptr() for parameter in model.parameters()} == {storage}


def test_tied_embeddings_are_one_parameter(make_opt):
    model = make_opt()
    full = xgblora.FullParameters(model)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embeddings is head
    (slot,) = [slot for slot in full.arena.slots if "embed_tokens" in slot.name or "lm_head" in slot.name]
    assert head.data_ptr() == slot.view(full.arena.live[0]).data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_that_of_mezo(make_opt, token_batch, dtype):
    """Two forwards of a model whose parameters are written one by one, and a plain update: the same bits."""
    model, other, batch = make_opt(dtype=dtype), make_opt(dtype=dtype), token_batch()
    full = xgblora.FullParameters(model)
    zo = xgblora.ZeroOrder(full, loss_of, eps=1e-2, lr=1e-3, directions=2, seed=5)
    before = full.arena.master.clone()
    first = xgblora.ops.noise.derive_seed(5, 0, 0)
    seeds = direction_seeds(first, 2)
    size, projected = before.numel(), []
    for seed in seeds:
        losses = []
        for sign in (1.0, -1.0):
            row = (sign * torch.tensor(1e-2)) * normal(seed, size, device=before.device) + before
            for slot, parameter in zip(full.arena.slots, other.parameters(), strict=True):
                parameter.data = slot.view(row).to(dtype)
            with torch.no_grad():
                losses.append(loss_of(other, batch).mean())
        projected.append((losses[0] - losses[1]) / (2.0 * torch.tensor([1e-2])))
    ops.update_(before, torch.tensor(seeds), torch.cat(projected), lr=1e-3)
    result = zo.step(batch)
    assert torch.equal(result.projected_grad, torch.cat(projected))
    assert torch.equal(full.arena.master, before)
    for slot, parameter in zip(full.arena.slots, model.parameters(), strict=True):
        assert torch.equal(parameter, slot.view(before).to(dtype))


@pytest.mark.parametrize("arguments", [{}, {"two_sided": False, "directions": 3}, {"distribution": "rademacher"}])
def test_a_restore_is_exact_however_often(make_opt, token_batch, arguments):
    model = make_opt(dtype=torch.bfloat16)
    before = parameters_of(model)
    perturbed = []

    def objective(model, batch):
        perturbed.append(any(not torch.equal(value, before[name]) for name, value in parameters_of(model).items()))
        return loss_of(model, batch)

    zo = xgblora.ZeroOrder(xgblora.FullParameters(model), objective, eps=1e-1, lr=0.0, **arguments)
    for _ in range(3):
        zo.step(token_batch())
        assert_same(parameters_of(model), before)
    zo.estimate(token_batch())
    zo.abandon_step()
    assert_same(parameters_of(model), before)
    # of a one-sided step the last forward is without noise
    assert perturbed == ([True] * (zo.forwards - 1) + [zo.two_sided]) * 4


def test_batches_accumulate_over_the_same_rows(make_opt, token_batch):
    once, twice = (xgblora.ZeroOrder(xgblora.FullParameters(make_opt()), loss_of, seed=2) for _ in range(2))
    once.step(token_batch())
    twice.estimate(token_batch(), weight=0.5)
    twice.estimate(token_batch(), weight=0.5)
    twice.update()
    assert torch.equal(once.adapters.arena.master, twice.adapters.arena.master)


def test_frozen_parameters_and_buffers_stay(token_batch, make_opt):
    model = make_opt()
    model.get_input_embeddings().requires_grad_(False)
    model.register_buffer("table", torch.arange(3.0))
    zo = xgblora.ZeroOrder(xgblora.FullParameters(model), loss_of, lr=1e-2)
    before = parameters_of(model)
    zo.step(token_batch())
    changed = {name for name, value in parameters_of(model).items() if not torch.equal(value, before[name])}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(before) - {"model.decoder.embed_tokens.weight"}
    # layer norms may have parameters that the rounding of a step keeps
    assert changed <= trained
    assert len(changed) > len(trained) / 2
    assert torch.equal(model.table, torch.arange(3.0))


def test_what_cannot_be_trained_is_refused_in_one_line(make_opt):
    def refused(model, said):
        with pytest.raises(InputError, match=said) as error:
            xgblora.FullParameters(model)
        assert "\n" not in str(error.value)

    quantised = torch.ao.nn.quantized.dynamic.Linear(4, 4)
    refused(nn.ModuleDict({"one": nn.Linear(4, 4), "packed": quantised}), "packed is no plain tensor")
    integers = nn.Linear(4, 4)
    integers.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    refused(nn.ModuleDict({"int8": integers}), "int8 is no plain tensor")
    refused(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()), "several dtypes")
    refused(nn.Linear(2, 2).requires_grad_(False), "no parameter that requires a gradient")
    refused(nn.Linear(2, 2).double(), "no plain tensor of fp32")
    shared = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    shared[1].weight = nn.Parameter(shared[0].weight.data)
    refused(shared, "share memory")
    adapted = make_opt()
    xgblora.attach(adapted, alpha=1.0)
    refused(adapted, "the model has adapters")


def test_a_stacked_forward_is_refused(make_opt):
    with pytest.raises(InputError, match="pairing=paired: full parameters"):
        xgblora.ZeroOrder(xgblora.FullParameters(make_opt()), loss_of, pairing="paired")


def test_a_model_that_was_converted_afterwards_is_found_out(make_opt, token_batch):
    zo = xgblora.ZeroOrder(xgblora.FullParameters(make_opt()), loss_of)
    zo.adapters.model.to(torch.bfloat16)
    with pytest.raises(InputError, match="moved or converted"):
        zo.step(token_batch())
