"""`--full`: runs of full-parameter zeroth-order training repeat, go on after a stop, and replay, bit for bit."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from xgblora.cli import export, replay, train
from xgblora.cli.exit import exits_with_one_line
from xgblora.errors import InputError
from xgblora.training.arguments import XGBLoRAArguments

FLAGS = ("--full", "--max_steps=6", "--learning_rate=1e-3", "--save_strategy=steps", "--save_steps=3")
KINDS = {"fp32": ("--zo_optimizer=momentum",), "bf16": ("--dtype=bfloat16", "--zo_directions=2")}


@pytest.fixture(params=KINDS)
def full_run(request, run):
    """A finished run of 6 steps with checkpoints 3 and 6, and its flags; not to be changed."""
    flags = (*FLAGS, *KINDS[request.param])
    return run(*flags), flags


def assert_same_end(ours, theirs) -> None:
    assert (ours.folder / "tape.bin").read_bytes() == (theirs.folder / "tape.bin").read_bytes()
    weights, others = ours.weights(), theirs.weights()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_model_was_trained_and_can_be_loaded(full_run, tiny_model_folder):
    done, _ = full_run
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder).state_dict()
    trained = AutoModelForCausalLM.from_pretrained(done.folder / "model").state_dict()
    weights = done.weights()
    assert all(torch.equal(trained[name], weights[name]) for name in weights)
    different = [name for name in weights if not torch.equal(base[name].to(weights[name].dtype), weights[name])]
    assert len(different) > 20
    assert any("embed_tokens" in name for name in different)


def test_the_same_seed_gives_the_same_bits(run, run_in, tmp_path):
    flags = (*FLAGS, *KINDS["fp32"])
    done, again = run(*flags), run_in(tmp_path / "again", *flags)
    assert again.losses == done.losses
    assert_same_end(again, done)


def test_a_run_goes_on_from_a_checkpoint_with_the_same_bits(full_run, run_in, tmp_path):
    done, flags = full_run
    shutil.copytree(done.folder / "checkpoint-3", tmp_path / "checkpoint-3")
    resumed = run_in(tmp_path, *flags, f"--resume_from_checkpoint={tmp_path / 'checkpoint-3'}")
    assert resumed.losses == done.losses[3:]
    assert_same_end(resumed, done)


def test_the_tape_gives_the_weights_again(full_run, tmp_path, capsys):
    done, _ = full_run
    replay.main([str(done.folder), f"--output_dir={tmp_path / 'again'}", "--use_cpu"])
    said = capsys.readouterr().out
    assert "verified: the weights are bit for bit those of the run" in said
    assert "the model with all its parameters trained" in said
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype="auto").state_dict()
    weights = done.weights()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_the_run_says_what_it_is(full_run):
    done, _ = full_run
    log = "\n".join(done.log)
    assert "Method: full parameters, zeroth-order (MeZO)" in log
    assert "Trainable parameters: " in log
    assert "Memory: " in log
    for line in ("Actual rank", "Alpha", "Scaling", "Steps per iteration", "Merge rule"):
        assert line not in log
    assert not (done.folder / "boosters.safetensors").exists()
    assert not (done.folder / "checkpoint-3" / "boosters.safetensors").exists()
    configuration = done.metrics["configuration"]
    assert configuration["method"] == "full"
    assert [configuration[name] for name in ("rank", "alpha", "scaling")] == [None, None, None]
    assert done.metrics["training"]["merges"] == 0


@pytest.mark.parametrize("what", [".", "checkpoint-3"])
def test_there_is_nothing_to_export(full_run, capsys, what):
    done, _ = full_run
    with pytest.raises(SystemExit):
        exits_with_one_line(export.main)([str(done.folder / what)])
    (line,) = capsys.readouterr().err.splitlines()
    assert "full-parameter training, which has no boosters" in line


def test_a_run_of_adapters_does_not_go_on_from_its_checkpoint(full_run, run_in, tmp_path, capsys):
    done, flags = full_run
    shutil.copytree(done.folder / "checkpoint-3", tmp_path / "checkpoint-3")
    with pytest.raises(SystemExit):
        run_in(tmp_path, "--lora", *flags[1:], f"--resume_from_checkpoint={tmp_path / 'checkpoint-3'}")
    assert "method is full there and lora here" in capsys.readouterr().err


def test_the_demonstration_has_no_flags_of_adapters_for_it():
    _, args = train.parse(["--full", "--use_cpu=true"])
    assert (args.method, args.xgblora_steps_per_iteration, args.zo_pairing) == ("full", 0, "sequential")
    assert args.learning_rate < train.parse(["--use_cpu=true"])[1].learning_rate


@pytest.mark.parametrize(
    "flags, said",
    [
        ({"lora": True}, "--lora and --full: choose one"),
        ({"xgblora": True}, "--xgblora and --full: choose one"),
        ({"trainer": "regular"}, "full=True: is for forward passes alone"),
        ({"lora_r": 4}, "lora_r=4: --full trains without adapters"),
        ({"xgblora_steps_per_iteration": 10}, "xgblora_steps_per_iteration=10: --full"),
        ({"staged_eval": True}, "staged_eval=True: --full"),
        ({"load_best_round_at_end": True}, "load_best_round_at_end=True: --full"),
        ({"zo_pairing": "paired"}, "zo_pairing=paired: --full"),
    ],
)
def test_flags_that_do_not_go_with_it(flags, said):
    with pytest.raises(InputError, match=said):
        XGBLoRAArguments(full=True, **flags)
