"""`xgblora-replay`: the trained model again, from base model and tape."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from xgblora import Ledger
from xgblora.cli.export import main as export_main
from xgblora.cli.replay import main
from xgblora.records import checkpoint

VERIFIED = "verified: the weights are bit for bit those of the run"
NOT_VERIFIED = "not verified: the run was stopped, and its tape has no digest of the weights to compare with"


@pytest.fixture
def replay(command):
    """A function `(*arguments)` that runs `xgblora-replay` and gives its `Ending`."""
    return lambda *arguments: command(main, *arguments)


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines_of(ending):
    assert ending.status == 0, ending.errors
    assert ending.errors == [], "no progress bar where there is no terminal"
    return ending.output.splitlines()


def test_a_finished_run_is_verified_and_the_model_is_the_run_s_bit_for_bit(replay, run_copy):
    what, verified, wrote, about_bits, load_it = lines_of(replay(run_copy))
    size = (run_copy / "tape.bin").stat().st_size
    assert what == (f"replayed 7 steps (0 skipped), 4 merges from a tape of {size} bytes, {size / 7:.1f} bytes a step")
    assert verified == VERIFIED
    folder = run_copy / "replayed"
    assert wrote.startswith(f"wrote {folder}: the model with 4 boosters of rank 1 merged, bfloat16, ")
    assert about_bits.startswith("bfloat16: OpenVINO")
    assert f'"{folder}"' in load_it
    assert same(tensors_of(folder), tensors_of(run_copy / "model"))
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(folder)("a gem")["input_ids"]


def test_the_tape_alone_is_enough(replay, run_copy, tmp_path):
    tape = shutil.copy(run_copy / "tape.bin", tmp_path / "some.bin")
    lines_of(replay(tape, "--output_dir=mine"))
    assert same(tensors_of(Path("mine")), tensors_of(run_copy / "model"))


@pytest.mark.parametrize("flags", [["--save_model=false"], ["--save_model", "False"], ["--no_save_model"]])
def test_only_checking_the_tape_writes_nothing(replay, zero_order_run, flags):
    before = contents(zero_order_run)
    what, verified = lines_of(replay(zero_order_run, *flags))
    assert verified == VERIFIED
    assert what.startswith("replayed 7 steps")
    assert contents(zero_order_run) == before


def test_a_killed_run_is_replayed_to_its_last_whole_step(replay, command, killed_run):
    what, verified, wrote, *_ = lines_of(replay(killed_run))
    assert what.startswith("replayed 6 steps (0 skipped), 3 merges from a tape of ")
    assert verified == NOT_VERIFIED
    assert "the model with 3 boosters of rank 1 merged" in wrote
    lines_of(command(export_main, killed_run / "checkpoint-6", "--output_dir=checkpoint"))
    assert same(tensors_of(killed_run / "replayed"), tensors_of(Path("checkpoint")))


def test_the_adapter_in_training_becomes_the_last_booster(replay, command, run_copy):
    _, verified, wrote, *_ = lines_of(replay(run_copy / "checkpoint-3"))
    assert verified == NOT_VERIFIED
    assert "the model with 2 boosters of rank 1 merged" in wrote
    lines_of(command(export_main, run_copy / "checkpoint-3"))
    replayed, exported = (run_copy / f"{name}-checkpoint-3" for name in ("replayed", "exported-merged"))
    assert same(tensors_of(replayed), tensors_of(exported))
    assert not same(tensors_of(replayed), tensors_of(run_copy / "model"))
    checkpoint.verified_manifest(run_copy / "checkpoint-3")


@pytest.mark.parametrize("step", [3, 6])
def test_a_step_on_the_way_gives_what_its_checkpoint_holds(replay, command, run_copy, step):
    what, verified, *_ = lines_of(replay(run_copy, f"--step={step}"))
    assert what.startswith(f"replayed {step} steps")
    assert verified == f"not verified: the tape has a digest of the weights at its end alone, not of step {step}"
    lines_of(command(export_main, run_copy / f"checkpoint-{step}"))
    replayed, exported = run_copy / f"replayed-step{step}", run_copy / f"exported-merged-checkpoint-{step}"
    assert same(tensors_of(replayed), tensors_of(exported))


def test_the_last_step_is_verified_and_there_is_none_behind_it(replay, zero_order_run, refused):
    _, verified = lines_of(replay(zero_order_run, "--step=7", "--no_save_model"))
    assert verified == VERIFIED
    for step in (0, 8):
        refused(replay(zero_order_run, f"--step={step}"), f"step={step}: must be 1 to 7, the last step of the tape")


def test_weights_that_cannot_be_written_leave_boosters(replay, run_copy, monkeypatch, request):
    """A run without a merge, so that only its end depends on whether weights can be written."""
    train_tiny = request.getfixturevalue("train_tiny")
    run = train_tiny(
        run_copy.parent / "quantised", "--max_steps=3", "--xgblora_merge_frequency=0", "--save_model=false"
    )
    monkeypatch.setattr("xgblora.adapters.Rank1Linear.mergeable", property(lambda layer: False))
    # the end of this tape is the digest of weights that were written
    tape = run / "tape.bin"
    tape.write_bytes(tape.read_bytes()[: -37 - 17])
    _, verified, wrote, then = lines_of(replay(run))
    assert verified == NOT_VERIFIED
    file = run / "replayed" / "boosters.safetensors"
    assert wrote.startswith(f"wrote {file}: 1 booster of rank 1, because the weights cannot be written (quantised")
    assert f"xgblora-export {file} --format peft" in then
    assert torch.equal(Ledger.load(file).rows(), Ledger.load(run / "boosters.safetensors").rows())


def test_a_first_order_run_has_no_tape(replay, first_order_run, refused):
    refused(replay(first_order_run), first_order_run, "no tape.bin", "only zeroth-order runs", "xgblora-export")


def test_what_is_no_run(replay, refused, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("text")
    refused(replay(), "RUN is missing", "--help")
    refused(replay(tmp_path / "nowhere"), "nowhere: there is no such folder or file")
    refused(replay(text), "text.txt: not a readable tape")
    refused(replay(tmp_path), "there is no tape.bin in it")


def test_a_tape_that_was_changed(replay, run_copy, refused):
    path = run_copy / "tape.bin"
    content = bytearray(path.read_bytes())
    content[-60] ^= 1
    path.write_bytes(content)
    refused(replay(run_copy), path, "it is damaged at byte")
    assert not (run_copy / "replayed").exists()


def test_another_base_model(replay, run_copy, refused):
    refused(replay(run_copy, f"--model_name={run_copy / 'model'}"), "recorded on another model", "fingerprint")
    refused(replay(run_copy, "--model_name=./no"), "model_name=./no", "no such folder")
    assert not (run_copy / "replayed").exists()


def test_an_earlier_result_is_replaced_only_if_told_so(replay, run_copy, refused):
    lines_of(replay(run_copy))
    (run_copy / "replayed" / "old.txt").write_text("old")
    refused(replay(run_copy), f"output_dir={run_copy / 'replayed'}", "is there already", "--overwrite")
    lines_of(replay(run_copy, "--overwrite"))
    assert not (run_copy / "replayed" / "old.txt").exists()
    refused(replay(run_copy, "--overwrite", f"--output_dir={run_copy}"), "tape.bin, which is needed")
    Path("file").write_text("mine")
    refused(replay(run_copy, "--output_dir=file"), "output_dir=file: is a file")


def test_flags_that_are_wrong(replay, zero_order_run, refused):
    refused(replay(zero_order_run, "--overwrit"), "--overwrit: unknown flag", "did you mean --overwrite?")
    refused(replay(zero_order_run, "--save_model=perhaps"), "--save_model", "perhaps")


def test_help_fits_on_a_screen(replay):
    ending = replay("--help")
    assert ending.status == 0
    lines = ending.output.splitlines()
    assert lines[0] == "usage: xgblora-replay RUN [--flag value ...]"
    assert len(lines) < 40
    assert not re.search(r"--no_|None", ending.output)
