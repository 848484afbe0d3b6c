"""The stacked boosters as a LoRA folder: read by the `peft` package itself."""

import json
import os
import re
import stat
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import xgblora
from xgblora.boosting.peft_adapter import CONFIG, WEIGHTS, export_peft
from xgblora.boosting.truncation import Factors, stacked_factors, truncated
from xgblora.errors import InputError
from xgblora.replaying import rebuild

peft = pytest.importorskip("peft")


@pytest.fixture
def boost(randomise_adapters):
    """A function that gives the ledger of a model after some rounds; each booster has a scale of its own."""

    def make(model, *, rounds=3, rank=1, target_modules=None, std=0.1):
        adapters = xgblora.attach(model, target_modules, alpha=2.0, rank=rank)
        booster = xgblora.Booster(adapters)
        for round in range(rounds):
            randomise_adapters(adapters, seed=round, std=std)
            booster.merge(step=round + 1)
        boosters = [replace(merged, scale=merged.scale * merged.round) for merged in booster.ledger.boosters]
        return replace(booster.ledger, boosters=boosters)

    return make


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch).logits.float()


def load_quietly(base, folder):
    """PEFT's model; a warning of PEFT (keys that are missing or too many, a layer of another kind) is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="peft")
        return peft.PeftModel.from_pretrained(base, folder).eval()


def dense(factors: Factors) -> torch.Tensor:
    """The update, fp64 [N, K]."""
    return factors.b.double().T @ factors.a.double()


@pytest.mark.parametrize("rank", [1, 3])
def test_peft_computes_what_the_merged_model_does(make_model, token_batch, boost, tmp_path, rank):
    ledger, batch = boost(make_model(), rank=rank), token_batch()
    assert export_peft(ledger, tmp_path / "adapter", base_model=make_model()) is None
    base, merged = logits_of(make_model(), batch), logits_of(rebuild(make_model(), ledger).adapters.model, batch)
    adapted = load_quietly(make_model(), tmp_path / "adapter")
    assert (merged - base).abs().max() > 0.3
    assert (logits_of(adapted, batch) - merged).abs().max() < 2e-5 * merged.abs().max()
    unloaded = adapted.merge_and_unload()
    assert (logits_of(unloaded, batch) - merged).abs().max() < 2e-5 * merged.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_beside_16_bit_weights_they_agree_to_their_rounding(make_model, token_batch, boost, tmp_path, dtype):
    ledger, batch = boost(make_model(dtype=dtype)), token_batch()
    export_peft(ledger, tmp_path / "adapter", base_model=make_model())
    merged = logits_of(rebuild(make_model(dtype=dtype), ledger).adapters.model, batch)
    adapted = logits_of(load_quietly(make_model(dtype=dtype), tmp_path / "adapter"), batch)
    assert (adapted - merged).abs().max() < 16 * torch.finfo(dtype).eps * merged.abs().max()


@pytest.mark.parametrize("name", ["opt-mini", "stories260K"])
def test_a_real_model(shared_model, boost, tmp_path, name):
    from transformers import AutoModelForCausalLM

    def load():
        return AutoModelForCausalLM.from_pretrained(shared_model(name), dtype=torch.float32).eval()

    ledger, batch = boost(load(), std=0.02), {"input_ids": torch.arange(3, 40).unsqueeze(0)}
    export_peft(ledger, tmp_path / "adapter")
    merged = logits_of(rebuild(load(), ledger).adapters.model, batch)
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32).eval()
    assert (logits_of(adapted, batch) - merged).abs().max() < 1e-4 * merged.abs().max()
    assert not torch.allclose(logits_of(load(), batch), merged, atol=1e-2)


def test_peft_finds_out_by_itself_that_gpt2_stores_its_weights_transposed(make_gpt2, token_batch, boost, tmp_path):
    ledger, batch = boost(make_gpt2()), token_batch()
    export_peft(ledger, tmp_path / "adapter")
    assert not json.loads((tmp_path / "adapter" / CONFIG).read_text())["fan_in_fan_out"]
    with pytest.warns(UserWarning, match="Setting fan_in_fan_out to True"):
        adapted = peft.PeftModel.from_pretrained(make_gpt2(), tmp_path / "adapter")
    merged = logits_of(rebuild(make_gpt2(), ledger).adapters.model, batch)
    assert torch.allclose(logits_of(adapted, batch), merged, atol=1e-4)


@pytest.mark.parametrize("where", ["cpu", "meta", "adapted"])
def test_the_base_model_says_how_its_layers_store_their_weights(make_model, make_gpt2, boost, tmp_path, where):
    ledger, model = boost(make_model()), make_model()
    if where == "meta":
        model = model.to("meta")
    elif where == "adapted":
        xgblora.attach(model, ledger.origin.layers, alpha=2.0)
    export_peft(ledger, tmp_path / "adapter", base_model=model)
    transposed = json.loads((tmp_path / "adapter" / CONFIG).read_text())["fan_in_fan_out"]
    assert transposed == (make_model is make_gpt2)


def test_the_files_say_all_that_peft_asks_for(make_opt, boost, tmp_path):
    ledger = boost(make_opt(), rounds=2, rank=3, target_modules=["layers.1.fc1"])
    ledger = replace(ledger, origin=replace(ledger.origin, model="some/model", revision="abc"))
    export_peft(ledger, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    layer = "model.decoder.layers.1.fc1"
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (config["base_model_name_or_path"], config["revision"]) == ("some/model", "abc")
    assert config["r"] == config["lora_alpha"] == 6
    assert config["target_modules"] == [layer]
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()} == {
        f"base_model.model.{layer}.lora_A.weight": ((6, 32), torch.float32),
        f"base_model.model.{layer}.lora_B.weight": ((64, 6), torch.float32),
    }
    a, b = ledger.slots[0].views(ledger.rows())
    assert torch.equal(tensors[f"base_model.model.{layer}.lora_A.weight"], a.reshape(6, 32))
    for column, (round, term) in enumerate((round, term) for round in range(2) for term in range(3)):
        scaled = ledger.boosters[round].scale * b[round, term]
        assert torch.equal(tensors[f"base_model.model.{layer}.lora_B.weight"][:, column], scaled)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [CONFIG, WEIGHTS]


def test_only_the_adapted_layers_get_an_adapter(make_opt, boost, tmp_path):
    export_peft(boost(make_opt(), target_modules=["layers.1.fc1"]), tmp_path / "adapter")
    adapted = load_quietly(make_opt(), tmp_path / "adapter")
    names = [name for name, module in adapted.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    assert names == ["base_model.model.model.decoder.layers.1.fc1"]


def test_another_name_for_the_base_and_another_task(boost, make_opt, tmp_path):
    ledger = boost(make_opt())
    ledger = replace(ledger, origin=replace(ledger.origin, model="some/model", revision="abc"))
    export_peft(ledger, tmp_path / "adapter", base_model="moved/model", task_type=None)
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert (config["base_model_name_or_path"], config["revision"], config["task_type"]) == ("moved/model", None, None)


def test_a_model_that_is_not_transformers(train_toy, make_toy, tmp_path):
    booster = train_toy()
    export_peft(booster.ledger, tmp_path / "adapter", task_type=None)
    x = torch.randn(4, 5)
    merged = rebuild(make_toy(), booster.ledger).adapters.model(x)
    assert torch.allclose(load_quietly(make_toy(), tmp_path / "adapter")(x), merged, atol=1e-6)


def test_quantised_layers_too(make_opt, quantise, boost, token_batch, tmp_path):
    ledger = boost(quantise(make_opt()))
    export_peft(ledger, tmp_path / "adapter")
    state = load_file(tmp_path / "adapter" / WEIGHTS)
    adapted = rebuild(quantise(make_opt()), ledger)
    for name, layer in adapted.adapters.layers.items():
        a, b = layer.bank
        assert torch.equal(a, state[f"base_model.model.{name}.lora_A.weight"])
        assert torch.equal(b, state[f"base_model.model.{name}.lora_B.weight"].T)


@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_a_rank_that_is_none_is_refused(boost, make_opt, tmp_path, rank):
    with pytest.raises(InputError, match=rf"^rank={re.escape(str(rank))}: must be a whole number, 1 or more$"):
        export_peft(boost(make_opt()), tmp_path / "adapter", rank=rank)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_ledger_is_refused(boost, make_opt, tmp_path):
    with pytest.raises(InputError, match=r"^the ledger is empty: there is no booster to export$"):
        export_peft(boost(make_opt(), rounds=0), tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_boosters_of_a_run_that_diverged_are_refused(boost, make_opt, tmp_path, value):
    ledger = boost(make_opt())
    ledger.boosters[1].adapters[3] = value
    with pytest.raises(InputError, match=r"q_proj are not finite|v_proj are not finite"):
        export_peft(ledger, tmp_path / "adapter", rank=2)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_replaced_whole_and_others_can_read_it(boost, make_opt, tmp_path):
    folder = tmp_path / "adapter"
    export_peft(boost(make_opt(), rounds=1), folder)
    (folder / "of the old export.txt").write_text("old")
    before = os.umask(0o022)
    try:
        export_peft(boost(make_opt(), rounds=2), folder)
    finally:
        os.umask(before)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert json.loads((folder / CONFIG).read_text())["r"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}


def test_a_failure_leaves_the_old_folder_and_nothing_else(boost, make_opt, tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    export_peft(boost(make_opt(), rounds=1), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_peft(boost(make_opt(), rounds=2), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def random_factors(rank=12, inputs=20, outputs=30, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(rank, inputs, generator=generator).to(dtype),
        torch.randn(rank, outputs, generator=generator).to(dtype),
    )


class TestTruncation:
    """The nearest factors of a smaller rank, against the dense singular value decomposition in fp64."""

    @pytest.mark.parametrize("rank", [1, 3, 11, 12])
    @pytest.mark.parametrize("shape", [(20, 30), (30, 20), (5, 30), (20, 5)], ids=str)
    def test_it_is_the_best_that_a_matrix_of_this_rank_can_be(self, shape, rank):
        layer = random_factors(12, *shape)
        new, cost = truncated({"layer": layer}, rank)
        u, s, v = torch.linalg.svd(dense(layer), full_matrices=False)
        best = u[:, :rank] * s[:rank] @ v[:rank]
        norm = torch.linalg.norm(s)
        assert new["layer"].a.shape == (rank, shape[0])
        assert new["layer"].b.shape == (rank, shape[1])
        assert new["layer"].a.dtype == new["layer"].b.dtype == torch.float32
        assert torch.linalg.norm(dense(new["layer"]) - best) < 1e-6 * norm
        lost = (torch.linalg.norm(dense(new["layer"]) - dense(layer)) / norm).item()
        assert cost.by_layer["layer"] == pytest.approx(lost, abs=1e-6)
        assert cost.overall == pytest.approx(lost, abs=1e-6)
        assert cost.by_layer["layer"] == pytest.approx((torch.linalg.norm(s[rank:]) / norm).item(), abs=1e-12)

    def test_the_rows_of_a_are_orthonormal_and_those_of_b_orthogonal(self):
        new, _ = truncated({"layer": random_factors()}, 7)
        singular_values = torch.linalg.svdvals(dense(random_factors()))[:7]
        a, b = new["layer"].a.double(), new["layer"].b.double()
        assert torch.allclose(a @ a.T, torch.eye(7, dtype=torch.float64), atol=1e-6)
        assert torch.allclose(b @ b.T, torch.diag(singular_values.square()), atol=1e-4)

    def test_rows_past_the_rank_of_the_update_are_zero(self):
        layer = random_factors(12, 5, 30)
        new, cost = truncated({"layer": layer}, 8)
        assert torch.all(new["layer"].a[5:] == 0) and torch.all(new["layer"].b[5:] == 0)
        assert torch.allclose(dense(new["layer"]), dense(layer), atol=1e-5)
        assert cost.overall == 0.0

    def test_boosters_that_point_the_same_way_cost_nothing(self):
        one = random_factors(1)
        layer = Factors(one.a.repeat(6, 1), torch.cat([one.b * scale for scale in range(1, 7)]))
        new, cost = truncated({"layer": layer}, 1)
        assert torch.allclose(dense(new["layer"]), dense(layer), atol=1e-4)
        assert cost.overall < 1e-6

    def test_small_singular_values_are_not_lost_beside_large_ones(self):
        # in fp32, or by way of b b^T, those below 1e-4 of the largest would be noise
        q_a, q_b = (torch.linalg.qr(torch.randn(40, 3, dtype=torch.float64))[0] for _ in range(2))
        layer = Factors(q_a.T.float(), (q_b * torch.tensor([1.0, 1e-3, 1e-5])).T.float())
        _, cost = truncated({"layer": layer}, 2)
        assert cost.overall == pytest.approx(1e-5, rel=0.05)

    def test_the_share_of_all_layers_weighs_them_by_their_norm(self):
        layers = {"small": random_factors(seed=1), "large": random_factors(seed=2), "none": random_factors(seed=3)}
        layers["large"] = Factors(layers["large"].a, 10 * layers["large"].b)
        layers["none"] = Factors(layers["none"].a, 0 * layers["none"].b)
        _, cost = truncated(layers, 4)
        values = {name: torch.linalg.svdvals(dense(layer)) for name, layer in layers.items()}
        lost = sum(s[4:].square().sum() for s in values.values()).sqrt()
        whole = sum(s.square().sum() for s in values.values()).sqrt()
        assert cost.overall == pytest.approx((lost / whole).item(), rel=1e-9)
        assert cost.by_layer["none"] == 0.0
        assert cost.by_layer[cost.worst_layer] == max(cost.by_layer.values()) > 0.1

    def test_the_full_matrix_is_never_made(self):
        class LargestTensor(TorchDispatchMode):
            """Remembers the elements of the largest result."""

            elements = 0

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                results = function(*args, **(kwargs or {}))
                for result in results if isinstance(results, tuple) else (results,):
                    if isinstance(result, torch.Tensor):
                        self.elements = max(self.elements, result.numel())
                return results

        layer = random_factors(6, 3000, 2000)
        with LargestTensor() as seen:
            truncated({"layer": layer}, 3)
        assert 0 < seen.elements <= 6 * 3000

    def test_peft_loads_the_truncated_adapter(self, make_model, token_batch, boost, tmp_path):
        ledger, batch = boost(make_model(), rounds=5), token_batch()
        cost = export_peft(ledger, tmp_path / "adapter", base_model=make_model(), rank=3)
        config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
        assert config["r"] == config["lora_alpha"] == 3
        assert 0 < cost.overall <= cost.by_layer[cost.worst_layer] < 1
        model = make_model()
        with torch.no_grad():
            for name, layer in stacked_factors(ledger).items():
                u, s, v = torch.linalg.svd(dense(layer))
                update = (u[:, :3] * s[:3] @ v[:3]).float()
                weight = model.get_submodule(name).weight
                weight += update if isinstance(model.get_submodule(name), nn.Linear) else update.T
        adapted = load_quietly(make_model(), tmp_path / "adapter")
        wanted = logits_of(model, batch)
        assert (logits_of(adapted, batch) - wanted).abs().max() < 2e-5 * wanted.abs().max()

    @pytest.mark.parametrize("rank", [6, 7, 100])
    def test_a_rank_that_holds_everything_changes_nothing(self, boost, make_opt, tmp_path, rank):
        ledger = boost(make_opt(), rounds=3, rank=2)
        export_peft(ledger, tmp_path / "all")
        assert export_peft(ledger, tmp_path / "adapter", rank=rank) is None
        for name in (CONFIG, WEIGHTS):
            assert (tmp_path / "adapter" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
