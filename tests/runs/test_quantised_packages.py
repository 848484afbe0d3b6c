"""Bases of bitsandbytes and torchao through `xgblora-train` on a CPU; boosters stay beside the weights."""

import pytest
import torch
import transformers

from tests.fixtures.models import tiny_llama
from xgblora import Tape, attach
from xgblora.adapters.identity import fingerprint
from xgblora.cli.export import main as export
from xgblora.replaying import replay

PACKAGES = {"8 bits": "bitsandbytes", "4 bits": "bitsandbytes", "int8": "torchao"}


def _settings(kind: str):
    if kind == "8 bits":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    if kind == "4 bits":
        return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    from torchao.quantization import Int8WeightOnlyConfig

    return transformers.TorchAoConfig(Int8WeightOnlyConfig())


@pytest.fixture(params=PACKAGES)
def quantised_folder(request, tmp_path, tiny_tokenizer):
    """A tiny Llama that was saved quantised; skipped where the package is missing or does not run on this CPU."""
    pytest.importorskip(PACKAGES[request.param])
    # blocks of 64 numbers
    sizes = {"vocab_size": len(tiny_tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}
    tiny_llama(**sizes, max_position_embeddings=96).save_pretrained(tmp_path / "plain")
    options = {"quantization_config": _settings(request.param), "dtype": torch.float32, "device_map": "cpu"}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain", **options)
        model(torch.tensor([[3, 4, 5]]))
    except (RuntimeError, ImportError, NotImplementedError) as error:
        pytest.skip(f"{PACKAGES[request.param]} does not run here: {error}")
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.filterwarnings("ignore")
def test_a_run_leaves_an_adapter_and_replays(quantised_folder, run_in, tmp_path, capsys):
    run = run_in(
        tmp_path / "run", f"--model_name={quantised_folder}", "--max_steps=4", "--xgblora_steps_per_iteration=2"
    )
    assert run.merge_lines == ["step 2", "step 4"]
    assert any("cannot be merged into" in line and "bank" in line for line in run.log)
    assert not (run.folder / "model").exists()
    assert (run.folder / "adapter" / "adapter_model.safetensors").is_file()
    base = transformers.AutoModelForCausalLM.from_pretrained(quantised_folder, dtype=torch.float32).eval()
    booster, verified = replay(base, Tape.load(run.folder / "tape.bin"))
    assert verified
    assert len(booster.ledger) == 2
    capsys.readouterr()
    export([str(run.folder), "--format=peft"])
    assert "2 boosters of rank 1 as a LoRA adapter of rank 2" in capsys.readouterr().out


def test_a_weight_that_repacks_itself_keeps_its_identity():
    """Which 4-bit weights do at their first forward on CPUs with AVX-512 in bf16; called by hand here."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    convert = pytest.importorskip("bitsandbytes.functional")._convert_weight_packed_for_cpu
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer.weight = bitsandbytes.nn.Params4bit(torch.randn(64, 64), requires_grad=False, quant_type="nf4")
    model = torch.nn.Sequential(layer.to("cpu"))
    adapters = attach(model, ["0"], alpha=1.0, trial=False)
    before, plain = fingerprint(adapters), layer.weight.data.clone()
    layer.weight.data, layer.weight.quant_state = convert(layer.weight.data, layer.weight.quant_state)
    assert not torch.equal(layer.weight.data.flatten(), plain.flatten()), "repacked"
    packed, scales = layer.weight.data.clone(), layer.weight.quant_state.absmax.clone()
    assert fingerprint(adapters) == before
    assert torch.equal(layer.weight.data, packed), "left alone"
    assert torch.equal(layer.weight.quant_state.absmax, scales), "left alone"
