import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import xgblora
from xgblora.boosting.export import export_merged
from xgblora.boosting.finish import finish
from xgblora.errors import InputError


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_exported_folder_gives_the_trained_logits(trained, token_batch, tmp_path, dtype):
    model, adapters, booster = trained(dtype)
    before = logits_of(model, token_batch())
    assert finish(adapters, booster, step=2, epoch=1.0)
    finished = logits_of(model, token_batch())
    export_merged(model, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").eval()
    assert loaded.dtype == dtype
    assert torch.equal(logits_of(loaded, token_batch()), finished)
    assert (finished - before).abs().max() < 64 * torch.finfo(dtype).eps * before.abs().max()
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_layers_that_cannot_be_written_keep_their_boosters(
    make_opt, quantise, randomise_adapters, token_batch, tmp_path
):
    model = quantise(make_opt())
    adapters = xgblora.attach(model, alpha=2.0)
    booster = xgblora.Booster(adapters)
    randomise_adapters(adapters)
    before = logits_of(model, token_batch())
    assert finish(adapters, booster, step=1, epoch=1.0)
    assert len(booster.ledger) == 1
    assert torch.allclose(logits_of(model, token_batch()), before, atol=1e-5)
    assert all(torch.all(layer.b == 0) for layer in adapters.layers.values())
    with pytest.raises(xgblora.InputError, match=r"cannot take its boosters \(quantised\): export_peft"):
        export_merged(model, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_replaced_whole(make_opt, tmp_path):
    folder = tmp_path / "merged"
    export_merged(make_opt(seed=0), folder)
    (folder / "of the old export.txt").write_text("old")
    newer = make_opt(seed=1)
    export_merged(newer, folder)
    assert not (folder / "of the old export.txt").exists()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in newer.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_others_can_read_what_was_exported(make_opt, tmp_path):
    before = os.umask(0o022)
    try:
        export_merged(make_opt(), tmp_path / "merged")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes.pop("merged") == 0o755
    assert set(modes.values()) == {0o644}


def fail(*_, **__):
    raise OSError("no space left")


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("where", ["saving", "renaming"])
def test_a_failure_leaves_the_old_folder_and_nothing_else(make_opt, tmp_path, monkeypatch, existing, where):
    folder = tmp_path / "merged"
    if existing:
        export_merged(make_opt(seed=0), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()} if existing else None
    model = make_opt(seed=1)
    if where == "saving":
        monkeypatch.setattr(type(model), "save_pretrained", fail)
    else:
        replace = os.replace
        monkeypatch.setattr(
            os, "replace", lambda a, b: fail() if str(b) == str(folder) and is_new(a) else replace(a, b)
        )

        def is_new(source):
            return not existing or (source / "model.safetensors").read_bytes() != before["model.safetensors"]

    with pytest.raises(OSError, match="no space left"):
        export_merged(model, folder)
    if existing:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == (["merged"] if existing else [])


def test_a_model_with_adapters_is_refused(make_opt, tmp_path):
    model = make_opt()
    xgblora.attach(model, alpha=2.0)
    with pytest.raises(xgblora.InputError, match=r"the model has adapters: .*detach\(model\) first"):
        export_merged(model, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["opt-mini", "stories260K"])
def test_a_real_model_with_its_tokenizer(shared_model, randomise_adapters, tmp_path, name):
    model = AutoModelForCausalLM.from_pretrained(shared_model(name), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(shared_model(name))
    adapters = xgblora.attach(model, alpha=2.0)
    randomise_adapters(adapters, std=0.02)
    batch = dict(tokenizer("Once upon a time there was", return_tensors="pt", return_token_type_ids=False))
    before = logits_of(model, batch)
    finish(adapters, xgblora.Booster(adapters), step=1, epoch=1.0)
    export_merged(model, tmp_path / "merged", tokenizer=tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    again = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert again("Once upon a time there was")["input_ids"] == batch["input_ids"][0].tolist()
    assert torch.equal(logits_of(loaded, batch), logits_of(model, batch))
    assert torch.allclose(logits_of(loaded, batch), before, atol=1e-3)


class TestWhatIsSaved:
    """It is compared with the model before it gets its name."""

    @pytest.fixture
    def plain(self, make_opt, tmp_path):
        """A model, and the folder where it is to be saved, which holds an earlier one."""
        (tmp_path / "merged").mkdir()
        (tmp_path / "merged" / "config.json").write_text("earlier")
        return make_opt(), tmp_path / "merged"

    def refused(self, model, folder, said):
        with pytest.raises(InputError, match=said):
            export_merged(model, folder)
        assert (folder / "config.json").read_text() == "earlier"
        assert [path.name for path in folder.parent.iterdir()] == ["merged"]

    def test_another_number_in_a_weight(self, plain, monkeypatch):
        model, folder = plain

        def save(place, real=model.save_pretrained):
            real(place)
            tensors = load_file(place / "model.safetensors")
            tensors["model.decoder.layers.0.fc1.weight"][0, 0] += 1
            save_file(tensors, place / "model.safetensors")

        monkeypatch.setattr(model, "save_pretrained", save)
        self.refused(model, folder, "model.decoder.layers.0.fc1.weight was saved as something else")

    def test_an_adapter_in_the_model_s_place(self, plain, monkeypatch):
        model, folder = plain
        monkeypatch.setattr(
            model, "save_pretrained", lambda place: save_file({"a": torch.ones(1)}, place / "adapter_model.safetensors")
        )
        self.refused(model, folder, "what was saved is no model")

    def test_numbers_that_are_none_are_saved_as_they_are(self, plain):
        model, folder = plain
        model.model.decoder.layers[0].fc1.weight.data[0, 0] = float("nan")
        export_merged(model, folder)
        assert load_file(folder / "model.safetensors")["model.decoder.layers.0.fc1.weight"][0, 0].isnan()
