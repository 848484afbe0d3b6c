"""The digest of the base is taken once, and again when its files are no longer the same."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import xgblora
from xgblora.adapters import identity
from xgblora.records import base_identity


@pytest.fixture
def loaded(tiny_model_folder, tmp_path):
    """A function that loads a copy of the tiny model with adapters, always the same folder."""
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))

    def load(targets=("q_proj", "v_proj"), dtype=torch.float32):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return xgblora.attach(model, targets, alpha=1.0)

    load.folder = folder
    return load


def facts(adapters):
    return base_identity.facts_of(adapters.model, adapters)


def test_what_is_kept_is_found_again(loaded, tmp_path):
    adapters = loaded()
    base_identity.keep(tmp_path / "base.json", facts(adapters), "abc")
    assert base_identity.kept(tmp_path / "base.json", facts(loaded())) == "abc"


@pytest.mark.parametrize("change", ["weights", "configuration", "layers", "dtype"])
def test_it_is_not_found_where_the_base_is_another(loaded, tmp_path, change):
    base_identity.keep(tmp_path / "base.json", facts(loaded()), "abc")
    if change == "weights":
        os.utime(loaded.folder / "model.safetensors", ns=(1, 1))
    if change == "configuration":
        os.utime(loaded.folder / "config.json", ns=(1, 1))
    other = loaded(
        targets=("q_proj",) if change == "layers" else ("q_proj", "v_proj"),
        dtype=torch.bfloat16 if change == "dtype" else torch.float32,
    )
    assert base_identity.kept(tmp_path / "base.json", facts(other)) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"facts": null}', "\ud800"])
def test_a_damaged_file_is_none(loaded, tmp_path, content):
    (tmp_path / "base.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert base_identity.kept(tmp_path / "base.json", facts(loaded())) is None


def test_a_model_without_files_has_no_facts(make_opt, tmp_path):
    adapters = xgblora.attach(make_opt(), alpha=1.0)
    assert facts(adapters) is None
    base_identity.keep(tmp_path / "base.json", None, "abc")
    assert not (tmp_path / "base.json").exists()
    (tmp_path / "base.json").write_text(json.dumps({"facts": None, "rest": "abc"}))
    assert base_identity.kept(tmp_path / "base.json", None) is None


def test_a_run_that_goes_on_does_not_take_it_again(run_in, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(
        identity, "rest_fingerprint", lambda adapters, real=identity.rest_fingerprint: taken.append(1) or real(adapters)
    )
    flags = ("--max_steps=6", "--save_strategy=steps", "--save_steps=3", "--resume_from_checkpoint=last")
    first = run_in(tmp_path / "run", *flags)
    kept = json.loads((first.folder / "base.json").read_text())
    assert len(taken) == 1
    shutil.rmtree(first.folder / "checkpoint-6")
    run_in(tmp_path / "run", *flags)
    assert len(taken) == 1
    manifest = json.loads((first.folder / "checkpoint-6" / "manifest.json").read_text())
    assert manifest["origin"]["rest"] == kept["rest"]
