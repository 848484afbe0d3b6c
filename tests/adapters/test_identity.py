"""Digests: equal for equal models, different for a change of any byte, name, dtype or shape."""

import hashlib
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

import xgblora
from xgblora.adapters import Origin
from xgblora.adapters.identity import fingerprint, layout_hash, rest_fingerprint, trained_hash
from xgblora.errors import InputError

KINDS = ["Linear", "Conv1D", "Int8Linear", "PackedLinear"]


@pytest.fixture
def make_model_of(make_base):
    """A function that makes a model of two equal layers of one kind, and one that is not adapted."""

    def make(kind, dtype=torch.float32):
        layers = {"first": make_base(kind), "second": make_base(kind), "other": nn.Linear(2, 2)}
        return nn.ModuleDict(layers).to(dtype)

    return make


def attach(model, targets=("first", "second"), **options):
    return xgblora.attach(model, targets, **{"alpha": 1.0, **options})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_equal_layers_have_equal_fingerprints_whatever_their_adapters(make_model_of, kind, dtype):
    model = make_model_of(kind, dtype)
    adapters = attach(model)
    first = fingerprint(adapters)
    adapters.arena.master.normal_()
    assert fingerprint(adapters) == trained_hash(adapters) == first
    xgblora.detach(model, fold=False)
    assert fingerprint(attach(model, alpha=7.0, rank=3, seed=9)) == first
    other = make_model_of(kind, dtype)
    other["other"].weight.data.zero_()
    assert fingerprint(attach(other)) == first
    assert len(first) == 64


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_of_every_tensor_counts(make_model_of, kind):
    adapters = attach(make_model_of(kind))
    seen = {fingerprint(adapters)}
    layer = adapters.layers["second"]
    tensors = [*layer.base.parameters(), *layer.base.buffers()]
    changes = 0
    for tensor in tensors:
        raw = tensor.data.view(torch.uint8).view(-1)
        for index in {0, len(raw) // 2, len(raw) - 1}:
            raw[index] ^= 1
            seen.add(fingerprint(adapters))
            raw[index] ^= 1
            changes += 1
    assert len(seen) == 1 + changes
    assert fingerprint(adapters) in seen


def test_names_dtypes_shapes_and_order_count(make_base):
    def of(**layers):
        return fingerprint(attach(nn.ModuleDict(layers), list(layers)))

    def zeros(*shape, dtype=torch.float32):
        layer = make_base("Linear", *shape[::-1])
        layer.weight.data, layer.bias = torch.zeros(*shape, dtype=dtype), None
        return layer

    digests = [
        of(one=zeros(4, 6)),
        of(other=zeros(4, 6)),
        of(one=zeros(6, 4)),
        of(one=zeros(2, 12)),
        of(one=zeros(4, 6, dtype=torch.bfloat16)),
        of(one=zeros(4, 6, dtype=torch.float16)),
        of(one=zeros(4, 12, dtype=torch.bfloat16)),
        of(one=zeros(4, 6), two=zeros(4, 6)),
        of(two=zeros(4, 6), one=zeros(4, 6)),
        of(one=zeros(8, 6)),
    ]
    assert len(set(digests)) == len(digests)


def test_the_origin_is_that_of_the_base_before_the_first_merge(make_model_of):
    adapters = attach(make_model_of("Linear"), rank=2, seed=4)
    before = fingerprint(adapters)
    booster = xgblora.Booster(adapters)
    origin = adapters.origin
    adapters.arena.master.normal_()
    booster.merge()
    assert fingerprint(adapters) != before
    assert adapters.origin is origin is booster.ledger.origin
    assert (origin.fingerprint, origin.layout, origin.layers) == (
        before,
        layout_hash(adapters.arena.slots),
        ("first", "second"),
    )
    assert (origin.rank, origin.alpha, origin.seed, origin.dtype) == (2, 1.0, 4, "float32")
    # whoever begins anew on merged weights has them as the base
    xgblora.Booster(adapters)
    assert adapters.origin.fingerprint == fingerprint(adapters) != before


def test_the_origin_of_full_parameters_is_that_of_what_was_not_trained_yet(make_model_of):
    full = xgblora.FullParameters(make_model_of("Linear"))
    before = fingerprint(full)
    xgblora.FullFineTuning(full)
    full.arena.master.add_(1.0)
    full.arena.restore()
    assert full.origin.fingerprint == before != fingerprint(full)
    assert full.origin.full_parameters


def test_the_layout_in_memory_does_not_count(make_model_of):
    model, other = make_model_of("Linear"), make_model_of("Linear")
    other["first"].weight.data = other["first"].weight.data.T.contiguous().T
    assert fingerprint(attach(model)) == fingerprint(attach(other))


def test_a_fingerprint_is_the_same_tomorrow():
    model = nn.ModuleDict({"only": nn.Linear(2, 1)})
    model["only"].weight.data, model["only"].bias.data = torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])
    stream = b'["only", 2]["bias", "torch.float32", [1]]\x00\x00\x40\x40'
    stream += b'["weight", "torch.float32", [1, 2]]\x00\x00\x80\x3f\x00\x00\x00\x40'
    assert fingerprint(attach(model, ["only"])) == hashlib.sha256(stream).hexdigest()


def test_a_merge_changes_both_digests_and_a_bank_only_that_of_what_was_trained(make_model_of):
    for kind in KINDS:
        adapters = attach(make_model_of(kind))
        booster = xgblora.Booster(adapters)
        before = fingerprint(adapters)
        adapters.arena.master.fill_(0.5)
        booster.merge()
        assert trained_hash(adapters) != before
        assert (fingerprint(adapters) == before) == (kind in ("Int8Linear", "PackedLinear"))
        booster.rollback(round=0)
        assert trained_hash(adapters) == fingerprint(adapters) == before


def test_every_byte_of_a_bank_counts(make_model_of):
    adapters = attach(make_model_of("Int8Linear"))
    seen = set()
    for name, part in (("first", 0), ("first", 1), ("second", 0), ("second", 1)):
        for layer in adapters.layers.values():
            layer.clear_bank()
            layer.extend_bank(torch.zeros(2, 6), torch.zeros(2, 4))
        seen.add(trained_hash(adapters))
        adapters.layers[name].bank[part][1, 3] = 1.0
        seen.add(trained_hash(adapters))
    for layer in adapters.layers.values():
        layer.extend_bank(torch.zeros(1, 6), torch.zeros(1, 4))
    seen.add(trained_hash(adapters))
    assert len(seen) == 1 + 4 + 1


def test_what_a_quantised_layer_keeps_in_its_state_dict_alone_counts(make_base):
    class Scaled(type(make_base("PackedLinear"))):
        """Keeps a scale that is neither a parameter nor a buffer, as bitsandbytes does."""

        scale = torch.ones(3)

        def _save_to_state_dict(self, destination, prefix, keep_vars):
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[prefix + "scale"] = self.scale

    adapters = attach(nn.ModuleDict({"only": Scaled(6, 4)}), ["only"])
    before = fingerprint(adapters)
    adapters.layers["only"].base.scale = torch.full((3,), 2.0)
    assert fingerprint(adapters) != before


def test_scalars_and_empty_tensors_have_fingerprints(make_base):
    base = make_base("Int8Linear")
    base.register_buffer("steps", torch.tensor(3))
    base.register_buffer("nothing", torch.empty(0, 5))
    adapters = attach(nn.ModuleDict({"only": base}), ["only"])
    before = fingerprint(adapters)
    base.steps += 1
    assert fingerprint(adapters) != before


def test_layers_without_bytes_are_refused_by_name():
    with torch.device("meta"):
        model = nn.ModuleDict({"only": nn.Linear(2, 2)})
    with pytest.raises(InputError, match=r"only\.bias is on the meta device: load its weights first"):
        fingerprint(attach(model, ["only"]))


def test_the_layout_is_names_ranks_sizes_and_places(make_model_of):
    def slots(*arguments, **options):
        return attach(make_model_of("Linear"), *arguments, **options).arena.slots

    assert layout_hash(slots()) == layout_hash(slots(alpha=3.0, seed=4))
    others = [layout_hash(slots()), layout_hash(slots(["first"])), layout_hash(slots(["second"]))]
    others += [layout_hash(slots(rank=2)), layout_hash(slots()[::-1]), layout_hash(slots()[:1] * 2)]
    assert len(set(others)) == len(others)


class TestTheRest:
    """All of a model that is not adapted, so that with the fingerprint every weight is covered."""

    def test_every_byte_of_every_other_tensor_counts_and_no_adapted_one(self, make_opt):
        adapters = xgblora.attach(make_opt(), ["q_proj"], alpha=1.0)
        adapted = {id(part) for layer in adapters.layers.values() for part in layer.parameters()}
        first = rest_fingerprint(adapters)
        seen = {first}
        others = [tensor for tensor in adapters.model.parameters() if id(tensor) not in adapted]
        for tensor in others:
            raw = tensor.data.view(torch.uint8).view(-1)
            raw[-1] ^= 1
            seen.add(rest_fingerprint(adapters))
            raw[-1] ^= 1
        assert len(seen) == 1 + len(others)
        for layer in adapters.layers.values():
            layer.base.weight.data.zero_()
            layer.base.bias.data.zero_()
        adapters.arena.master.normal_()
        assert rest_fingerprint(adapters) == first

    def test_names_count_and_computed_tables_do_not(self):
        def of(name="more", **buffers):
            model = nn.ModuleDict({"one": nn.Linear(2, 2), name: nn.Module()})
            torch.nn.init.zeros_(model["one"].weight), torch.nn.init.zeros_(model["one"].bias)
            for persistent, value in buffers.items():
                model[name].register_buffer("table", value, persistent=persistent == "kept")
            return rest_fingerprint(xgblora.attach(model, ["one"], alpha=1.0))

        one, two = torch.ones(2), torch.ones(2) * 2
        assert of() == of(computed=one) == of(computed=two)
        assert len({of(), of(kept=one), of(kept=two), of("other", kept=one)}) == 4

    def test_what_two_modules_share_counts_once(self, make_opt):
        model = make_opt()
        assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
        tensors = [dict(parts) for _, parts in xgblora.attach(model, alpha=1.0).rest_tensors()]
        assert sum(model.lm_head.weight.data_ptr() == part.data_ptr() for one in tensors for part in one.values()) == 1

    def test_of_full_parameters_it_is_what_is_frozen(self, make_opt):
        model = make_opt()
        model.lm_head.weight.requires_grad_(False)
        full = xgblora.FullParameters(model)
        (place,) = [parts for _, parts in full.rest_tensors() if "weight" in parts]
        assert torch.equal(place["weight"], model.lm_head.weight)
        first = rest_fingerprint(full)
        full.arena.live.zero_()
        assert rest_fingerprint(full) == first

    @pytest.mark.parametrize("ours, theirs, refused", [("a", "a", False), ("a", "b", True), ("a", None, False)])
    def test_a_record_of_another_rest_is_refused_and_one_of_none_is_not(self, make_opt, ours, theirs, refused):
        origin = replace(xgblora.attach(make_opt(), alpha=1.0).origin, rest=ours)
        other = Origin.from_json(replace(origin, rest=theirs).to_json())
        assert other.rest == theirs
        with pytest.raises(InputError, match="fingerprint of the base's other weights") if refused else nullcontext():
            origin.refuse_other(other, "no")
