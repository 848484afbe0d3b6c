"""`xgblora-export`: a run as a model, as a LoRA adapter, as its boosters."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli.exports import contents, lines_of, same, tensors_of
from xgblora import Ledger
from xgblora.cli.replay import main as command_replay
from xgblora.records import checkpoint
from xgblora.replaying import rebuild


class TestMerged:
    """The whole model."""

    def test_it_is_the_model_that_the_run_left_bit_for_bit(self, export, run_copy):
        before = contents(run_copy)
        wrote, about_bits, load_it = lines_of(export(run_copy))
        folder = run_copy / "exported-merged"
        assert about_bits.startswith("bfloat16: OpenVINO (2026.4) reads these bits as float16 without a word, ")
        assert about_bits.endswith("xgblora-export RUN --dtype float32 writes them wide")
        assert same(tensors_of(folder), tensors_of(run_copy / "model"))
        assert wrote.startswith(f"wrote {folder}: the model with 4 boosters of rank 1 merged, bfloat16, ")
        assert wrote.endswith(" kB")
        assert f'AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")' in load_it
        names = {}
        exec(load_it.removeprefix("load it: "), {"AutoModelForCausalLM": AutoModelForCausalLM}, names)
        assert names["model"].dtype == torch.bfloat16
        assert AutoTokenizer.from_pretrained(folder)("a gem") == AutoTokenizer.from_pretrained(run_copy / "model")(
            "a gem"
        )
        after = contents(run_copy)
        assert {path: after[path] for path in before} == before
        assert {path.parts[0] for path in after.keys() - before.keys()} == {"exported-merged"}

    def test_the_first_rounds(self, export, run_copy):
        lines_of(export(run_copy, "--round", 2))
        metrics = json.loads((run_copy / "metrics.json").read_text())
        base = AutoModelForCausalLM.from_pretrained(metrics["configuration"]["model_name"], dtype=torch.bfloat16)
        booster = rebuild(base, Ledger.load(run_copy / "boosters.safetensors"))
        booster.rollback(round=2)
        found = tensors_of(run_copy / "exported-merged-round-2")
        for name, layer in booster.adapters.layers.items():
            assert torch.equal(found[f"{name}.weight"], layer.weight)
        assert not same(found, tensors_of(run_copy / "model"))

    def test_wide(self, export, run_copy):
        wrote, _ = lines_of(export(run_copy, "--dtype=float32"))
        folder = run_copy / "exported-merged-float32"
        assert wrote.startswith(f"wrote {folder}: the model with 4 boosters of rank 1 merged, float32, ")
        narrow = tensors_of(run_copy / "model")
        assert {tensor.dtype for tensor in narrow.values()} == {torch.bfloat16}
        assert same(tensors_of(folder), {name: tensor.float() for name, tensor in narrow.items()})
        assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.float32

    def test_plain_lora_and_a_folder_of_ones_own(self, export, first_order_run):
        wrote, _ = lines_of(export(first_order_run, "--output_dir=deeper/mine"))
        assert wrote.startswith(f"wrote {Path('deeper/mine')}: the model with 1 booster of rank 2 merged, float32, ")
        assert AutoModelForCausalLM.from_pretrained("deeper/mine").dtype == torch.float32

    def test_only_weights_differ_from_the_base(self, export, train_tiny, tiny_model_folder, tmp_path):
        """What a run leaves, what is exported and what is replayed have the base's files, byte for byte."""
        base = Path(shutil.copytree(tiny_model_folder, tmp_path / "base"))
        entries = json.loads((base / "tokenizer_config.json").read_text())
        del entries["pad_token"]
        (base / "tokenizer_config.json").write_text(json.dumps(entries))
        (base / "NOTICE").write_bytes(b"theirs\r\n")
        run = train_tiny(tmp_path / "run", f"--model_name={base}", "--max_steps=2", "--dtype=bfloat16")
        lines_of(export(run))
        command_replay([str(run)])
        theirs = {path: content for path, content in contents(base).items() if path.name != "model.safetensors"}
        theirs[Path("config.json")] = theirs[Path("config.json")].replace(b'"dtype": "float32"', b'"dtype": "bfloat16"')
        for name in ("model", "exported-merged", "replayed"):
            ours = contents(run / name)
            assert ours.pop(Path("model.safetensors")) != (base / "model.safetensors").read_bytes()
            assert ours == theirs

    def test_the_base_model_may_have_moved(self, export, run_copy, tiny_model_folder, refused, tmp_path):
        moved = shutil.copytree(tiny_model_folder, tmp_path / "moved")
        lines_of(export(run_copy, f"--model_name={moved}"))
        assert same(tensors_of(run_copy / "exported-merged"), tensors_of(run_copy / "model"))

    def test_another_base_model_is_refused(self, export, run_copy, refused):
        ending = export(run_copy, f"--model_name={run_copy / 'model'}")
        refused(ending, "the ledger belongs to another model", "fingerprint")
        assert not (run_copy / "exported-merged").exists()

    def test_a_base_model_that_is_gone(self, export, zero_order_run, refused, tmp_path):
        ledger = Ledger.load(zero_order_run / "boosters.safetensors")
        for model, said in (("/gone/away", "model_name=/gone/away"), (None, "does not say what its base model is")):
            replace(ledger, origin=replace(ledger.origin, model=model)).save(tmp_path / "boosters.safetensors")
            refused(export(tmp_path / "boosters.safetensors"), said, "model_name")
        refused(export(zero_order_run, "--model_name=./no"), "model_name=./no", "no such folder")

    def test_weights_that_cannot_be_written(self, export, first_order_run, monkeypatch, refused):
        """A base model whose adapted layers are quantised, as far as merging is concerned."""
        monkeypatch.setattr("xgblora.adapters.Rank1Linear.mergeable", property(lambda layer: False))
        ending = export(first_order_run, "--output_dir=out")
        refused(ending, "format=merged: the weights of 4 layers cannot be written", "use --format peft")
        assert not Path("out").exists()
        lines_of(export(first_order_run, "--format=peft", "--output_dir=out"))


class TestLedger:
    """The boosters as they are."""

    def test_the_first_rounds_of_a_run(self, export, run_copy):
        wrote, load_it = lines_of(export(run_copy, "--format=ledger", "--round=3"))
        file = run_copy / "exported-ledger-round-3" / "boosters.safetensors"
        whole, first = Ledger.load(run_copy / "boosters.safetensors"), Ledger.load(file)
        assert torch.equal(first.rows(), whole.rows()[:3])
        assert first.origin == whole.origin
        assert wrote.startswith(f"wrote {file}: 3 boosters of rank 1, ")
        assert str(file) in load_it

    def test_what_was_exported_can_be_exported_again(self, export, run_copy):
        lines_of(export(run_copy, "--format=ledger"))
        lines_of(export(run_copy / "exported-ledger"))
        assert same(tensors_of(run_copy / "exported-ledger" / "exported-merged"), tensors_of(run_copy / "model"))

    def test_it_is_never_written_over_itself(self, export, run_copy, refused):
        for source in (run_copy, run_copy / "boosters.safetensors"):
            ending = export(source, "--format=ledger", f"--output_dir={run_copy}", "--overwrite", "--round=1")
            refused(ending, f"output_dir={run_copy}", "which is needed")
        assert len(Ledger.load(run_copy / "boosters.safetensors")) == 4

    def test_another_ledger_is_replaced_only_if_told_so(self, export, run_copy, refused):
        lines_of(export(run_copy, "--format=ledger", "--output_dir=out"))
        (Path("out") / "mine.txt").write_text("mine")
        again = "--format=ledger", "--output_dir=out", "--round=1"
        refused(export(run_copy, *again), "output_dir=out", "holds a boosters.safetensors already", "--overwrite")
        lines_of(export(run_copy, *again, "--overwrite"))
        assert len(Ledger.load("out/boosters.safetensors")) == 1
        assert Path("out/mine.txt").exists()


class TestSources:
    """What RUN may be."""

    @pytest.mark.parametrize("which", ["checkpoint-3", "checkpoint-3/boosters.safetensors"])
    def test_a_checkpoint_stays_whole_and_the_result_lies_beside_it(self, export, run_copy, which):
        wrote, *_ = lines_of(export(run_copy / which, "--format=peft"))
        # as a checkpoint it holds the adapter in training too, as a file of boosters it does not
        assert ("2 boosters of rank 1" if which == "checkpoint-3" else "1 booster of rank 1") in wrote
        assert (run_copy / "exported-peft-checkpoint-3" / "adapter_config.json").is_file()
        checkpoint.verified_manifest(run_copy / "checkpoint-3")

    def test_a_ledger_file(self, export, run_copy):
        lines_of(export(run_copy / "boosters.safetensors"))
        assert same(tensors_of(run_copy / "exported-merged"), tensors_of(run_copy / "model"))

    def test_a_killed_run_names_its_newest_whole_checkpoint(self, export, killed_run, refused):
        refused(export(killed_run), killed_run, "has not finished", f"newest checkpoint, {killed_run / 'checkpoint-6'}")
        (killed_run / "checkpoint-6" / "manifest.json").unlink()
        refused(export(killed_run), f"newest checkpoint, {killed_run / 'checkpoint-3'}")
        refused(export(killed_run / "checkpoint-6"), "checkpoint-6", "no manifest.json")
        shutil.rmtree(killed_run / "checkpoint-3")
        refused(export(killed_run), "has not finished", "xgblora-replay")
        (killed_run / "tape.bin").unlink()
        refused(export(killed_run), f"{killed_run}: is not the folder of a run", "no boosters.safetensors")

    def test_a_damaged_checkpoint(self, export, run_copy, refused):
        path = run_copy / "checkpoint-3" / "adapters.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        refused(export(run_copy / "checkpoint-3"), "checkpoint-3", "adapters.safetensors is damaged")

    def test_a_damaged_ledger(self, export, run_copy, refused):
        path = run_copy / "boosters.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        refused(export(run_copy), path, "not a readable ledger")

    def test_what_is_no_run(self, export, tiny_model_folder, refused, tmp_path):
        text = tmp_path / "text.txt"
        text.write_text("text")
        refused(export(), "RUN is missing", "--help")
        refused(export("--format=peft"), "RUN is missing")
        refused(export(tmp_path / "nowhere"), "nowhere: there is no such folder or file")
        refused(export(text), "text.txt: not a readable ledger")
        refused(export(tiny_model_folder), tiny_model_folder, "is not the folder of a run")


class TestPlaces:
    """Where results may go, and what is never lost."""

    @pytest.mark.parametrize("format", ["merged", "peft"])
    def test_an_earlier_result_is_replaced_only_if_told_so(self, export, run_copy, refused, format):
        lines_of(export(run_copy, f"--format={format}"))
        folder = run_copy / f"exported-{format}"
        (folder / "of the old.txt").write_text("old")
        before = contents(folder)
        refused(export(run_copy, f"--format={format}"), f"output_dir={folder}", "is there already", "--overwrite")
        assert contents(folder) == before
        lines_of(export(run_copy, f"--format={format}", "--overwrite"))
        assert not (folder / "of the old.txt").exists()

    @pytest.mark.parametrize("format", ["merged", "peft"])
    def test_what_is_no_earlier_result_is_never_replaced(self, export, run_copy, refused, tiny_model_folder, format):
        Path("mine").mkdir()
        Path("mine/diary.txt").write_text("dear diary")
        before = contents(run_copy), contents(tiny_model_folder)
        flags = f"--format={format}", "--overwrite"
        refused(export(run_copy, *flags, "--output_dir=mine"), "output_dir=mine", "something else")
        for folder in (run_copy, run_copy.parent):
            refused(export(run_copy, *flags, f"--output_dir={folder}"), f"output_dir={folder}", "which is needed")
        if format == "merged":
            ending = export(run_copy, *flags, f"--output_dir={tiny_model_folder}")
            refused(ending, f"holds {tiny_model_folder}, which is needed")
        assert (contents(run_copy), contents(tiny_model_folder)) == before
        assert Path("mine/diary.txt").read_text() == "dear diary"

    @pytest.mark.parametrize("format", ["merged", "peft", "ledger"])
    def test_places_that_cannot_be_written(self, export, run_copy, refused, monkeypatch, format):
        Path("file").write_text("mine")
        flag = f"--format={format}"
        refused(export(run_copy, flag, "--output_dir=file"), "output_dir=file: is a file")
        ending = export(run_copy, flag, "--output_dir=file/deeper")
        refused(ending, "output_dir=file/deeper: cannot be made", "is a file")
        monkeypatch.setattr("os.access", lambda path, mode: False)
        refused(export(run_copy, flag, "--output_dir=a/b"), "output_dir=a/b: cannot be written", "read-only")
        assert [path.name for path in Path.cwd().iterdir()] == ["file"]

    @pytest.mark.parametrize("format", ["merged", "peft", "ledger"])
    def test_a_disk_that_is_full(self, export, run_copy, refused, monkeypatch, format):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.replace", full)
        ending = export(run_copy, f"--format={format}", "--output_dir=out")
        refused(ending, "output_dir=out: cannot be written (No space left on device)")
        assert [path for path in Path.cwd().rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--fromat=peft"], ["--fromat", "did you mean --format?"]),
        (["--format=pfet"], ["--format", "pfet", "merged", "peft", "ledger"]),
        (["--format"], ["--format", "expected one argument"]),
        (["--dtype=float16"], ["--dtype", "float16", "float32"]),
        (["--format=peft", "--dtype=float32"], ["dtype=float32", "--format merged"]),
        (["--rank=2"], ["rank=2", "--format peft"]),
        (["--format=peft", "--rank=0"], ["rank=0", "1 or more"]),
        (["--format=peft", "--rank=two"], ["--rank", "two"]),
        (["--for=vllm"], ["for=vllm", "--format peft"]),
        (["--format=peft", "--for=ollama"], ["--for", "ollama", "vllm", "llama.cpp", "transformers"]),
        (["--round=0"], ["round=0", "from 1 to 4"]),
        (["--round=5"], ["round=5", "from 1 to 4"]),
        (["--overwrite=perhaps"], ["--overwrite", "perhaps"]),
        (["--out=x"], ["--out", "unknown flag"]),
        (["another"], ["another", "is no flag"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_flags_that_are_wrong(export, zero_order_run, refused, flags, said):
    before = contents(zero_order_run)
    refused(export(zero_order_run, *flags), *said)
    assert contents(zero_order_run) == before


def test_run_may_stand_behind_the_flags(export, zero_order_run):
    lines_of(export("--format", "ledger", "--output-dir", "out", zero_order_run))
    assert Path("out/boosters.safetensors").is_file()


def test_help_fits_on_a_screen(export):
    ending = export("--help")
    assert ending.status == 0
    lines = ending.output.splitlines()
    assert lines[0].startswith("usage: xgblora-export RUN [--format merged|peft|gguf|mlx|ledger]")
    assert len(lines) < 40
    for flag in (
        "--format",
        "--dtype",
        "--rank",
        "--for ",
        "--round",
        "--model_name",
        "--output_dir",
        "--overwrite",
        "--use_cpu",
    ):
        assert sum(line.strip().startswith(flag) for line in lines) == 1
    assert "None" not in ending.output
