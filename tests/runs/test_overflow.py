"""A run in fp16 whose merges would pass the range of a weight: it says so, trains on, and leaves all it trained."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from xgblora.boosting import Ledger
from xgblora.boosting.overflow import MergeOverflow
from xgblora.errors import InputError
from xgblora.records import checkpoint
from xgblora.replaying import rebuild

# the column whose input is always zero, so that what stands there changes no loss
COLUMN = 5
FLAGS = (
    "--dtype=float16",
    "--lora_alpha=4096",
    "--zo_optimizer=sign",
    "--learning_rate=0.05",
    "--xgblora_steps_per_iteration=2",
    "--max_steps=4",
    "--save_strategy=steps",
    "--save_steps=2",
)


@pytest.fixture
def full_folder(tiny_model_folder, tmp_path) -> Path:
    """The tiny model with weights at both ends of fp16, that read an input that is zero."""
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    layer = "model.decoder.layers.0"
    for name in ("weight", "bias"):
        tensors[f"{layer}.self_attn_layer_norm.{name}"][COLUMN] = 0.0
    signs = torch.tensor([1.0, -1.0]).repeat(16)
    tensors[f"{layer}.self_attn.q_proj.weight"][:, COLUMN] = 65_504.0 * signs
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_what_cannot_be_merged_stays_an_adapter(run_in, full_folder, tmp_path):
    run = run_in(tmp_path / "run", f"--model_name={full_folder}", *FLAGS)
    assert [loss for _, loss in run.losses if float(loss) != float(loss)] == []
    assert run.merge_lines == []
    said = [line for line in run.log if "was not made" in line]
    assert len(said) == 3
    assert all("model.decoder.layers.0.self_attn.q_proj would pass the range of float16" in line for line in said)
    assert [line.endswith("trains on") for line in said] == [True, True, False]
    assert run.entries("merges.jsonl") == []
    # the adapter that no merge took, trained for four steps
    ledger = Ledger.load(run.folder / "boosters.safetensors")
    assert len(ledger) == 1
    assert torch.equal(ledger.boosters[0].adapters, checkpoint_of(run.folder, 4))
    assert not (run.folder / "model").exists()
    assert (run.folder / "adapter" / "adapter_model.safetensors").is_file()
    with pytest.raises(MergeOverflow):
        rebuild(base_of(full_folder), ledger)


def checkpoint_of(folder: Path, step: int) -> torch.Tensor:
    return checkpoint.ledger_of(folder / f"checkpoint-{step}").boosters[-1].adapters


def base_of(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)


def test_a_run_that_goes_on_comes_out_the_same(run_in, full_folder, tmp_path):
    whole = run_in(tmp_path / "whole", f"--model_name={full_folder}", *FLAGS)
    stopped = run_in(tmp_path / "run", f"--model_name={full_folder}", *FLAGS)
    for path in (stopped.folder / "metrics.json", stopped.folder / "boosters.safetensors"):
        path.unlink()
    shutil.rmtree(stopped.folder / "checkpoint-4")
    resumed = run_in(stopped.folder, f"--model_name={full_folder}", *FLAGS, "--resume_from_checkpoint=last")
    assert resumed.losses == whole.losses
    ledgers = [Ledger.load(run.folder / "boosters.safetensors").rows() for run in (whole, resumed)]
    assert torch.equal(*ledgers)


def test_taking_it_away(run_in, full_folder, tmp_path):
    from xgblora.cli.export import ExportArguments, boosters_at, write_adapter, write_merged
    from xgblora.cli.result import ResultArguments

    run = run_in(tmp_path / "run", f"--model_name={full_folder}", *FLAGS)
    ledger, args = boosters_at(run.folder), ResultArguments(use_cpu=True)
    with pytest.raises(InputError, match=r"base \+ boosters: the weight of model.decoder.layers.0.self_attn.q_proj"):
        write_merged(run.folder, ledger, tmp_path / "merged", args, dtype=None)
    assert not (tmp_path / "merged").exists()
    peft = ExportArguments(format="peft")
    assert write_adapter(run.folder, ledger, tmp_path / "peft", args, peft)[0].startswith("wrote")
