"""Only weights are trained: of a base model's folder, everything else is in the result, byte for byte."""

import json
import logging
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import xgblora
from tests.boosting.base_folders import THETA, write_base
from xgblora.boosting.base_files import base_folder, copy_tokenizer, set_dtype
from xgblora.boosting.export import export_merged
from xgblora.boosting.finish import finish

WEIGHTS = re.compile(r".*\.safetensors|.*\.index\.json|pytorch_model\.bin")


def contents(folder):
    """The files beside the weights, hidden folders apart."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in files if not WEIGHTS.fullmatch(path.name) and not path.parts[0].startswith(".")]
    return {str(path): (folder / path).read_bytes() for path in kept}


def weights_of(folder):
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


@pytest.fixture
def trained_from(randomise_adapters):
    """A function `(folder, dtype)`: the model of a folder after a round, and its tokenizer as a run sets it up."""

    def train(name, dtype=torch.float32, **arguments):
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False, **arguments).eval()
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
        adapters = xgblora.attach(model, alpha=2.0)
        randomise_adapters(adapters)
        finish(adapters, xgblora.Booster(adapters), step=1, epoch=1.0)
        return model, tokenizer

    return train


@pytest.mark.parametrize("remote_code", [False, True], ids=["", "remote-code"])
@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("form", ["4", "5"])
def test_everything_but_the_weights_is_the_base_s(
    trained_from, tiny_tokenizer, tmp_path, caplog, form, sharded, remote_code
):
    base = write_base(tmp_path / "base", form, tiny_tokenizer, sharded=sharded, remote_code=remote_code)
    assert (base / "model.safetensors.index.json").exists() == sharded
    model, tokenizer = trained_from(base)
    with caplog.at_level(logging.WARNING, "xgblora"):
        export_merged(model, tmp_path / "merged", tokenizer=tokenizer)
    assert contents(tmp_path / "merged") == contents(base)
    assert "README.md" in contents(base)
    # no weights of before, in any form
    assert sorted(path.name for path in (tmp_path / "merged").iterdir() if WEIGHTS.fullmatch(path.name)) == [
        "model.safetensors"
    ]
    assert weights_of(tmp_path / "merged").keys() == weights_of(base).keys()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", trust_remote_code=False).eval()
    assert loaded.config.rope_parameters["rope_theta"] == THETA
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
        moved = loaded(input_ids=ids).logits - AutoModelForCausalLM.from_pretrained(base)(input_ids=ids).logits
    assert moved.abs().max() > 0.01
    assert [record for record in caplog.records if record.name == "xgblora"] == []


@pytest.mark.parametrize("form", ["4", "5"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_another_dtype_the_configuration_says_so_and_nothing_else_changes(
    trained_from, tiny_tokenizer, tmp_path, form, dtype
):
    base = write_base(tmp_path / "base", form, tiny_tokenizer, sharded=False)
    model, tokenizer = trained_from(base, dtype)
    export_merged(model, tmp_path / "merged", tokenizer=tokenizer)
    ours, theirs = contents(tmp_path / "merged"), contents(base)
    name = str(dtype).removeprefix("torch.")
    assert ours.pop("config.json") == theirs.pop("config.json").replace(b'"float32"', f'"{name}"'.encode())
    assert ours == theirs
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == dtype


def test_a_model_of_the_hub_is_found_in_its_cache(tiny_tokenizer, tmp_path, python):
    """As the hub's client lays it out, files as links; without a network."""
    base = write_base(tmp_path / "base", "4", tiny_tokenizer, sharded=True)
    commit, repository = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hub" / "models--some--model"
    for path in [path for path in base.rglob("*") if path.is_file()]:
        link = repository / "snapshots" / commit / path.relative_to(base)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    program = f"""
        import xgblora
        from transformers import AutoModelForCausalLM, AutoTokenizer
        model, tokenizer = (kind.from_pretrained("some/model") for kind in (AutoModelForCausalLM, AutoTokenizer))
        tokenizer.pad_token = tokenizer.eos_token
        xgblora.export_merged(model, {str(tmp_path / "merged")!r}, tokenizer=tokenizer)
    """
    python(program, HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
    assert contents(tmp_path / "merged") == contents(base)
    assert not any(path.is_symlink() for path in (tmp_path / "merged").rglob("*"))


def test_what_was_changed_of_the_model_is_written_and_said(trained_from, tiny_tokenizer, tmp_path, caplog):
    base = write_base(tmp_path / "base", "4", tiny_tokenizer, sharded=False)
    model, tokenizer = trained_from(base)
    tokenizer.add_tokens(["<new>"])
    model.resize_token_embeddings(72)
    export_merged(model, tmp_path / "merged", tokenizer=tokenizer)
    assert "The configuration is not that of" in caplog.text
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert loaded.config.vocab_size == 72
    assert "<new>" in AutoTokenizer.from_pretrained(tmp_path / "merged").get_vocab()
    assert contents(tmp_path / "merged")["README.md"] == b"# Theirs\r\n"


def test_a_base_that_is_gone_is_said(trained_from, tiny_tokenizer, tmp_path, caplog):
    base = write_base(tmp_path / "base", "5", tiny_tokenizer, sharded=False)
    model, tokenizer = trained_from(base)
    shutil.rmtree(base)
    export_merged(model, tmp_path / "merged", tokenizer=tokenizer)
    assert f"{base} is not here any more" in caplog.text
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.rope_parameters["rope_theta"] == THETA
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(tokenizer)


def test_a_result_inside_the_base_s_folder_is_not_copied_into_itself(trained_from, tiny_tokenizer, tmp_path):
    base = write_base(tmp_path / "base", "5", tiny_tokenizer, sharded=False)
    before = contents(base)
    model, _ = trained_from(base)
    for _ in range(2):
        export_merged(model, base / "runs" / "one" / "model")
    assert contents(base / "runs" / "one" / "model") == before


def test_the_base_s_own_folder_can_be_replaced(trained_from, tiny_tokenizer, tmp_path):
    base = write_base(tmp_path / "base", "4", tiny_tokenizer, sharded=True)
    before = contents(base)
    model, tokenizer = trained_from(base)
    export_merged(model, base, tokenizer=tokenizer)
    assert contents(base) == before
    assert not (base / "pytorch_model.bin").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"torch_dtype" :"float32","a":1}', b'{"torch_dtype" :"float16","a":1}'),
        (b'{"dtype": "bfloat16", "text_config": {\r\n"dtype": "bfloat16"}}', None),
        (b'{"dtype": "float16", "text_config": {"dtype": "float32"}}', b"unchanged"),
        (b'{"a": "float32"}', b"unchanged"),
        (b'{"torch_dtype": null}', b"unchanged"),
    ],
)
def test_only_the_dtype_is_changed(tmp_path, text, said):
    (tmp_path / "config.json").write_bytes(text)
    set_dtype(tmp_path, "float16")
    wanted = text if said == b"unchanged" else said or text.replace(b"bfloat16", b"float16")
    assert (tmp_path / "config.json").read_bytes() == wanted
    json.loads(wanted)


def test_the_tokenizer_alone(tiny_tokenizer, tmp_path):
    base = write_base(tmp_path / "base", "4", tiny_tokenizer, sharded=False)
    (base / "checkpoint-5").mkdir()
    (base / "checkpoint-5" / "tokenizer.json").write_text("of another")
    (tmp_path / "to").mkdir()
    copy_tokenizer(base, tmp_path / "to", result=tmp_path / "to")
    found = contents(tmp_path / "to")
    assert found.keys() == {
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "additional_chat_templates/tools.jinja",
    }
    assert found.items() <= contents(base).items()


def test_a_tokenizer_whose_class_the_configuration_says_is_written_with_it(make_gpt2, tmp_path):
    """As GPT-2's own folder has it: without the class the special tokens would be lost."""
    base = tmp_path / "base"
    make_gpt2().save_pretrained(base)
    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2}
    (base / "vocab.json").write_text(json.dumps(vocabulary))
    (base / "merges.txt").write_text("#version: 0.2\n")
    (base / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    (tmp_path / "to").mkdir()
    copy_tokenizer(base, tmp_path / "to", result=tmp_path / "to")
    assert not (tmp_path / "to" / "config.json").exists()
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "to", base))
    assert (ours.eos_token, ours.get_vocab()) == (theirs.eos_token, theirs.get_vocab())
    assert ours.eos_token == "<|endoftext|>"


def test_a_folder_without_a_tokenizer_has_none_to_copy(make_opt, tmp_path):
    make_opt().save_pretrained(tmp_path / "base")
    (tmp_path / "to").mkdir()
    copy_tokenizer(tmp_path / "base", tmp_path / "to", result=tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize("name", [None, "", "/gone/away", "no/such-model-anywhere", "not a name at all!", "../.."])
def test_no_folder_is_found_where_there_is_none(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert base_folder(name) is None
