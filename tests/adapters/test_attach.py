import math

import pytest
import torch
from torch import nn

import xgblora
from xgblora.adapters.targets import DEFAULT_TARGETS
from xgblora.errors import InputError


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(4, 4), nn.Linear(4, 3)
        self.sub_q_proj = nn.Linear(4, 4)

    def forward(self, x):
        return self.v_proj(self.q_proj(x)) + self.sub_q_proj(x)[..., :3]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"layers": nn.ModuleList([Block() for _ in range(12)]), "head": nn.Linear(3, 2)})


def names(adapters):
    return list(adapters.layers)


@pytest.mark.parametrize("make", ["make_opt", "make_llama"])
def test_the_default_is_the_query_and_value_projections(request, make):
    adapters = xgblora.attach(request.getfixturevalue(make)(), alpha=2.0)
    assert len(adapters.layers) == 4
    assert {name.rpartition(".")[2] for name in adapters.layers} == {"q_proj", "v_proj"}
    assert all(name.rpartition(".")[0].endswith("attn") for name in adapters.layers)


@pytest.mark.parametrize("targets", DEFAULT_TARGETS)
def test_other_architectures_have_a_default(targets):
    model = nn.ModuleDict({"attention": nn.ModuleDict({name: nn.Linear(2, 2) for name in (*targets, "other")})})
    assert names(xgblora.attach(model, alpha=1.0)) == [f"attention.{name}" for name in targets]


def test_names_match_whole_last_parts_in_model_order(model):
    adapters = xgblora.attach(model, ["v_proj", "q_proj"], alpha=1.0)
    assert names(adapters) == [f"layers.{i}.{name}" for i in range(12) for name in ("q_proj", "v_proj")]


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (["1.q_proj"], ["layers.1.q_proj"]),
        (["layers.11.v_proj"], ["layers.11.v_proj"]),
        (["layers.3.q_proj", "head"], ["layers.3.q_proj", "head"]),
        ("head", ["head"]),
        ("2.q_proj", ["layers.2.q_proj"]),
        (r"layers\.[01]\.q_proj", ["layers.0.q_proj", "layers.1.q_proj"]),
        (r".*\.1\.(q|v)_proj", ["layers.1.q_proj", "layers.1.v_proj"]),
        (("head",), ["head"]),
        ((name for name in ["head"]), ["head"]),
    ],
)
def test_targets_are_names_suffixes_full_names_or_one_expression(model, targets, wanted):
    assert names(xgblora.attach(model, targets, alpha=1.0)) == wanted


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["k_proj"], r"target_modules=k_proj: matches no linear layer; there are head, q_proj, sub_q_proj, v_proj"),
        (["q_proj", "typo"], r"target_modules=typo: matches no linear layer"),
        (["proj"], r"matches no linear layer"),
        (["layers.3"], r"matches no linear layer"),
        ("q_pro", r"target_modules=q_pro: matches no linear layer; there are head, q_proj"),
        ("(q_proj", r"target_modules=\(q_proj: not a regular expression"),
        ([], r"target_modules is empty"),
    ],
)
def test_targets_that_match_nothing_are_refused_with_what_there_is(model, targets, message):
    before = list(model.named_modules())
    with pytest.raises(InputError, match=message) as raised:
        xgblora.attach(model, targets, alpha=1.0)
    assert "\n" not in str(raised.value)
    assert list(model.named_modules()) == before
    assert all(parameter.requires_grad for parameter in model.parameters()), "a refused model is left as it was"


def test_a_model_without_known_names_has_no_default():
    with pytest.raises(InputError, match="no default target_modules for this model: choose from first"):
        xgblora.attach(nn.ModuleDict({"first": nn.Linear(2, 2)}), alpha=1.0)
    with pytest.raises(InputError, match="none in this model"):
        xgblora.attach(nn.ModuleDict({"first": nn.Conv1d(2, 2, 1)}), alpha=1.0)


def test_attaching_twice_is_refused(model):
    xgblora.attach(model, ["head"], alpha=1.0)
    with pytest.raises(InputError, match=r"has adapters already: xgblora.detach\(model\) first"):
        xgblora.attach(model, ["q_proj"], alpha=1.0)
    xgblora.detach(model)
    assert names(xgblora.attach(model, ["head"], alpha=1.0)) == ["head"]


@pytest.mark.parametrize("alpha", [0, -1.0, math.nan, math.inf, "16", None])
def test_alpha_must_be_a_positive_finite_number(model, alpha):
    with pytest.raises(InputError, match=f"lora_alpha={alpha}: must be a positive finite number"):
        xgblora.attach(model, ["head"], alpha=alpha)


@pytest.mark.parametrize("rank", [0, -1, 1.0, "1"])
def test_rank_must_be_a_whole_positive_number(model, rank):
    with pytest.raises(InputError, match=f"lora_r={rank}: must be a whole number, 1 or more"):
        xgblora.attach(model, ["head"], alpha=1.0, rank=rank)


def test_the_scale_is_alpha_over_rank(model):
    adapters = xgblora.attach(model, ["q_proj"], alpha=6.0, rank=4)
    assert adapters.scale == 1.5
    assert {layer.scale for layer in adapters.layers.values()} == {1.5}


def test_an_untied_head_may_carry_an_adapter(make_opt):
    assert names(xgblora.attach(make_opt(tie_word_embeddings=False), ["lm_head"], alpha=1.0)) == ["lm_head"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 3])
def test_attaching_changes_no_logit(make_model, token_batch, dtype, rank):
    model, batch = make_model(dtype=dtype), token_batch()
    with torch.no_grad():
        before = model(**batch).logits
        xgblora.attach(model, alpha=16.0, rank=rank)
        assert torch.equal(model(**batch).logits, before)


def test_the_base_is_frozen_and_the_adapters_train(make_model):
    model = make_model()
    adapters = xgblora.attach(model, alpha=1.0)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert trainable == {id(p) for layer in adapters.layers.values() for p in (layer.a, layer.b)}


def test_num_parameters_counts_what_trains(make_model):
    for rank in (1, 3):
        model = make_model()
        adapters = xgblora.attach(model, alpha=1.0, rank=rank)
        assert adapters.num_parameters() == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert adapters.num_parameters() == rank * sum(sum(weight.shape) for weight in adapters.weights())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 3])
def test_detach_folds_the_adapters_into_the_weights(make_model, token_batch, randomise_adapters, dtype, rank):
    model, batch = make_model(dtype=dtype), token_batch()
    with torch.no_grad():
        base = model(**batch).logits.float()
        randomise_adapters(xgblora.attach(model, alpha=3.0, rank=rank), std=0.3)
        adapted = model(**batch).logits.float()
        assert xgblora.detach(model) is model
        folded = model(**batch).logits.float()
    change = (adapted - base).abs().max()
    assert change > 0.1
    assert (folded - adapted).abs().max() < 64 * torch.finfo(dtype).eps * base.abs().max()
    assert not any(isinstance(module, xgblora.Rank1Linear) for module in model.modules())


def test_detach_without_folding_gives_the_very_model_back(make_model, token_batch, randomise_adapters):
    model, batch = make_model(), token_batch()
    modules, weights = dict(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        before = model(**batch).logits
        randomise_adapters(xgblora.attach(model, alpha=3.0))
        assert not torch.equal(model(**batch).logits, before)
        xgblora.detach(model, fold=False)
        assert torch.equal(model(**batch).logits, before)
    assert dict(model.named_modules()) == modules
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_detaching_a_plain_model_does_nothing(model):
    before = list(model.named_modules())
    assert xgblora.detach(model) is model
    assert list(model.named_modules()) == before


@pytest.mark.parametrize("name", ["opt-mini", "stories260K"])
def test_real_models_keep_their_logits(shared_model, name):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(shared_model(name), dtype=torch.float32).eval()
    input_ids = torch.arange(5, 21).view(2, 8)
    with torch.no_grad():
        before = model(input_ids=input_ids).logits
        adapters = xgblora.attach(model, alpha=16.0)
        assert torch.equal(model(input_ids=input_ids).logits, before)
    assert len(adapters.layers) == 2 * model.config.num_hidden_layers


def test_detach_makes_trainable_again_what_attach_froze(model):
    first = next(model.parameters())
    first.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    xgblora.attach(model, alpha=16.0)
    xgblora.detach(model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert any(before.values())
    assert not all(before.values())


@pytest.mark.parametrize("rank", [1, 2])
def test_attaching_and_every_round_leave_torchs_generator_alone(make_model, rank):
    model, before = make_model(), torch.get_rng_state()
    adapters = xgblora.attach(model, alpha=1.0, rank=rank)
    adapters.reinitialise(round=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert adapters.arena.master.abs().max() > 0


@pytest.mark.parametrize("part", ["whole", "layer"])
def test_what_torch_compile_returned_is_refused_in_one_line(part):
    model = nn.ModuleDict({"layer": nn.Linear(4, 2)})
    if part == "layer":
        model["layer"] = torch.compile(model["layer"])
    with pytest.raises(InputError, match="was compiled: attach adapters first"):
        xgblora.attach(model if part == "layer" else torch.compile(model), ["layer"], alpha=1.0)
