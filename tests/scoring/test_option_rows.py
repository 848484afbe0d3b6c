"""The rows that are read are the same whatever the others are spared, and the others are spared it."""

import pytest
import torch
from torch import nn

import xgblora
from xgblora.scoring.option_rows import OptionRows, Rows, places_of

COLUMNS = [[0, 6], [3], [2, 4, 6]]
LENGTH = 7


@pytest.fixture(params=["sdpa", "eager"])
def model(request, make_model):
    model = make_model()
    model.set_attn_implementation(request.param)
    return model


def plainly(model):
    """`ids` to logits, without mask or positions."""
    return lambda ids: model(input_ids=ids, use_cache=False).logits


def wanted(groups: int = 1) -> Rows:
    places = torch.tensor(places_of(COLUMNS * groups, LENGTH))
    return Rows(places[places < groups * len(COLUMNS) * LENGTH], places)


def texts() -> torch.Tensor:
    return torch.randint(2, 60, (len(COLUMNS), LENGTH), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def trial_of(model, rows: OptionRows) -> str | None:
    """What `OptionRows.spare` asks: whether the rows are those of the whole forward."""
    expected = plainly(model)(texts()).flatten(0, 1)[wanted().rows]
    try:
        with rows.only(wanted()):
            logits = plainly(model)(texts())[0]
    except TypeError as error:
        return str(error)
    return None if torch.allclose(logits, expected, rtol=1e-4, atol=1e-5) else "its rows are others then"


def spared(model) -> OptionRows:
    rows = OptionRows(model)
    assert rows.spare(model, lambda: trial_of(model, rows)) is None
    return rows


def last_product(layer: nn.Module) -> nn.Module:
    """The last matrix product of the feed-forward part."""
    return [module for module in layer.modules() if type(module).__name__ in ("Linear", "Conv1D")][-1]


@torch.no_grad()
def test_rows_are_those_of_the_whole_forward(model):
    expected = plainly(model)(texts()).flatten(0, 1)[wanted().rows]
    with spared(model).only(wanted()):
        logits = plainly(model)(texts())
    assert logits.shape == (1, 6, expected.shape[-1])
    torch.testing.assert_close(logits[0], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_last_layer_computes_no_more_rows_than_the_longest_list(model):
    rows, seen = spared(model), []
    last_product(rows.layer).register_forward_hook(lambda _, inputs, output: seen.append(output[..., 0].numel()))
    plainly(model)(texts())
    with rows.only(wanted()):
        plainly(model)(texts())
    with rows.only(Rows(wanted().rows)):
        plainly(model)(texts())
    assert seen == [3 * LENGTH, 3 * 3, 3 * LENGTH]


def test_gradients_are_those_of_the_whole_forward(model, randomise_adapters):
    adapters = xgblora.attach(model, None, alpha=4.0)
    randomise_adapters(adapters)
    rows, gradients = spared(model), []
    for places in (wanted().places, None):
        with rows.only(Rows(wanted().rows, places)):
            plainly(model)(texts()).log_softmax(dim=-1)[..., 5].sum().backward()
        gradients.append([part.grad.clone() for layer in adapters.layers.values() for part in (layer.a, layer.b)])
        for layer in adapters.layers.values():
            layer.a.grad = layer.b.grad = None
    for ours, expected in zip(*gradients, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_groups_of_rows_keep_their_adapters(model, randomise_adapters):
    adapters = xgblora.attach(model, None, alpha=4.0)
    randomise_adapters(adapters)
    rows = spared(model)
    adapters.arena.allocate_live(2, torch.float32)
    adapters.arena.perturb(torch.tensor([5]), torch.tensor([0.5]), torch.tensor([1.0, -1.0]), "gaussian")
    adapters.arena.read_live(0, 2)
    both = texts().repeat(2, 1)
    expected = plainly(model)(both).flatten(0, 1)[wanted(2).rows]
    with rows.only(wanted(2)):
        logits = plainly(model)(both)[0]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[:6], logits[6:], atol=1e-3)


@torch.no_grad()
def test_positions_and_a_mask_of_four_dimensions_are_followed(model):
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(len(COLUMNS), 1, LENGTH, LENGTH, generator=generator).tril() > 0.3
    mask |= torch.eye(LENGTH, dtype=torch.bool)
    if model.config._attn_implementation == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    positions = torch.randint(0, 20, (len(COLUMNS), LENGTH), generator=generator)
    given = {"input_ids": texts(), "attention_mask": mask, "position_ids": positions, "use_cache": False}
    expected = model(**given).logits.flatten(0, 1)[wanted().rows]
    with spared(model).only(wanted()):
        logits = model(**given).logits[0]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_no_hook_is_left_even_where_a_forward_fails(model):
    rows = spared(model)
    with rows.only(wanted()):
        plainly(model)(texts())
    with pytest.raises(IndexError), rows.only(wanted()):
        plainly(model)(texts() + 10_000)
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_too_many_rows_are_not_worth_it():
    assert places_of([[0, 1, 2, 3]], 7) is None
    assert places_of([[0, 1], [4]], 7) == [[0, 1], [11, 14]]


@torch.no_grad()
def test_recomputed_layers_compute_all_rows(make_llama):
    model = make_llama()
    rows = spared(model)
    model.train()
    model.gradient_checkpointing_enable()
    with torch.enable_grad(), rows.only(wanted()):
        logits = plainly(model)(texts())
    model.eval()
    torch.testing.assert_close(logits[0], plainly(model)(texts()).flatten(0, 1)[wanted().rows], rtol=1e-5, atol=1e-5)


class ReadsHiddenStatesTwice(nn.Module):
    """A decoder whose rows are not independent behind the last layer."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, hidden):
        return self.norm(hidden + hidden.mean(dim=1, keepdim=True))


def test_a_model_that_cannot_says_why_and_computes_all(make_opt, make_llama):
    mixed = make_llama()
    mixed.model.norm = ReadsHiddenStatesTwice(mixed.model.norm)
    cacheless = make_llama()
    attention = cacheless.model.layers[-1].self_attn
    forward = attention.forward
    attention.forward = lambda *args, past_key_values=None, **kwargs: forward(*args, past_key_values=None, **kwargs)
    listless = make_opt()
    listless.config.num_hidden_layers = 7
    for model, reason in ((mixed, "rows are others"), (cacheless, "reads no cache"), (listless, "no list of layers")):
        rows = OptionRows(model)
        assert reason in rows.spare(model, lambda model=model, rows=rows: trial_of(model, rows))
        assert rows.layer is None
        with torch.no_grad(), rows.only(wanted()):
            logits = plainly(model)(texts())[0]
        torch.testing.assert_close(logits, plainly(model)(texts()).flatten(0, 1)[wanted().rows], rtol=1e-5, atol=1e-5)
