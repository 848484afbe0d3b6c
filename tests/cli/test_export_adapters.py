"""`xgblora-export`: a run as a LoRA adapter."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import xgblora
from tests.cli.exports import contents, lines_of, logits_of
from xgblora import Ledger


class TestPeft:
    """One LoRA adapter."""

    @pytest.mark.parametrize("run", ["zero_order_run", "first_order_run"])
    def test_peft_loads_it_as_the_last_line_says(self, export, request, run):
        peft = pytest.importorskip("peft")
        run = request.getfixturevalue(run)
        wrote, about_rank, load_it = lines_of(export(run, "--format=peft", "--output_dir=adapter"))
        rank = Ledger.load(run / "boosters.safetensors").rows().shape[0] * (2 if "lora" in run.name else 1)
        assert f" as a LoRA adapter of rank {rank}, " in wrote
        assert about_rank == f"rank {rank}: vLLM takes it as it is (--max-lora-rank is 16 where it is not given)"
        names = {}
        known = {"AutoModelForCausalLM": AutoModelForCausalLM, "PeftModel": peft.PeftModel}
        exec(load_it.removeprefix("load it: "), known, names)
        lines_of(export(run, "--output_dir=merged"))
        merged = logits_of(AutoModelForCausalLM.from_pretrained("merged", dtype="auto").eval())
        eps = torch.finfo(names["model"].dtype).eps
        assert (logits_of(names["model"].eval()) - merged).abs().max() < 16 * eps * merged.abs().max()

    def test_a_smaller_rank_says_what_it_costs(self, export, run_copy):
        wrote, cost, *_ = lines_of(export(run_copy, "--format=peft", "--rank=2"))
        assert "4 boosters of rank 1 as a LoRA adapter of rank 2" in wrote
        assert cost.startswith("rank 2 of 4: ")
        assert "% of the update is lost (Frobenius norm), at most " in cost
        assert "% in one layer (model.decoder.layers." in cost
        config = json.loads((run_copy / "exported-peft-rank-2" / "adapter_config.json").read_text())
        assert config["r"] == 2

    @pytest.mark.parametrize("rank", [4, 100])
    def test_a_rank_that_holds_everything_says_that_nothing_is_lost(self, export, run_copy, rank):
        wrote, cost, *_ = lines_of(export(run_copy, "--format=peft", f"--rank={rank}"))
        assert "as a LoRA adapter of rank 4" in wrote
        assert cost == f"rank {rank} was asked for: all boosters together have rank 4, nothing is lost"

    def test_the_name_of_the_base_model(self, export, run_copy, tiny_model_folder):
        lines_of(export(run_copy, "--format=peft", "--output_dir=one"))
        lines_of(export(run_copy, "--format=peft", "--output_dir=two", "--model_name=moved/there"))
        one, two = (json.loads(Path(folder, "adapter_config.json").read_text()) for folder in ("one", "two"))
        assert one["base_model_name_or_path"] == str(tiny_model_folder)
        assert two["base_model_name_or_path"] == "moved/there"

    def test_the_tokenizer_lies_beside_it(self, export, run_copy, tiny_model_folder):
        lines_of(export(run_copy, "--format=peft", "--output_dir=adapter"))
        ours, theirs = contents(Path("adapter")), contents(tiny_model_folder)
        names = {"tokenizer.json", "tokenizer_config.json"}
        assert {str(path) for path in ours} == {"adapter_config.json", "adapter_model.safetensors", *names}
        assert all(ours[Path(name)] == theirs[Path(name)] for name in names)
        assert AutoTokenizer.from_pretrained("adapter")("a gem") == AutoTokenizer.from_pretrained(tiny_model_folder)(
            "a gem"
        )

    @pytest.mark.parametrize("program", ["vllm", "transformers"])
    def test_what_a_program_asks_is_said_line_by_line(self, export, run_copy, program):
        *checked, wrote, _, _ = lines_of(export(run_copy, "--format=peft", f"--for={program}"))
        assert len(checked) >= 2
        assert all(line.startswith(f"{program}: ") for line in checked)
        assert wrote.startswith("wrote ")

    def test_a_program_that_cannot_take_it_is_refused_before_anything_is_written(self, export, run_copy, refused):
        ending = export(run_copy, "--format=peft", "--for=llama.cpp", "--output_dir=out")
        refused(ending, "for=llama.cpp: no adapter of a model of type opt can be taken to llama.cpp; known are cohere,")
        assert not Path("out").exists()

    def test_gpt2_is_said_to_store_its_weights_transposed(self, export, boosters_of, make_gpt2):
        lines_of(export(boosters_of(make_gpt2), "--format=peft", "--output_dir=out"))
        assert json.loads(Path("out/adapter_config.json").read_text())["fan_in_fan_out"] is True


class TestOtherFormats:
    """The same boosters for llama.cpp and for mlx-lm."""

    @pytest.mark.parametrize(
        ("format", "file", "how"),
        [
            (
                "gguf",
                "adapter.gguf",
                "llama-cli -m BASE.gguf --lora out/adapter.gguf (BASE.gguf: convert_hf_to_gguf.py ",
            ),
            ("mlx", "adapters.safetensors", "mlx_lm.generate --model "),
        ],
    )
    def test_what_is_written_and_how_it_is_loaded(self, export, boosters_of, make_llama, format, file, how):
        if format == "gguf":
            pytest.importorskip("gguf", reason="the package gguf is not installed (.[destinations])")
        boosters = boosters_of(make_llama)
        wrote, load_it = lines_of(export(boosters, f"--format={format}", "--output_dir=out"))
        assert wrote.startswith(f"wrote {Path('out')}: 2 boosters of rank 1 as a LoRA adapter of rank 2, ")
        assert load_it.startswith(f"load it: {how}")
        assert Path("out", file).is_file()
        _, cost, _ = lines_of(export(boosters, f"--format={format}", "--rank=1", "--output_dir=out", "--overwrite"))
        assert cost.startswith("rank 1 of 2: ")

    @pytest.mark.parametrize("format", ["gguf", "mlx"])
    def test_a_model_that_is_not_known_there(self, export, run_copy, refused, format):
        refused(export(run_copy, f"--format={format}"), f"format={format}: no adapter of a model of type opt can be")
        assert not (run_copy / f"exported-{format}").exists()


@pytest.fixture
def boosters_of(tiny_tokenizer, randomise_adapters, tmp_path):
    """A function that gives the file of two boosters of a tiny model, whose folder lies beside it."""

    def write(make) -> Path:
        make(vocab_size=len(tiny_tokenizer)).save_pretrained(tmp_path / "base")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        adapters = xgblora.attach(model, alpha=2.0)
        booster = xgblora.Booster(adapters)
        for seed in range(2):
            randomise_adapters(adapters, seed=seed)
            booster.merge()
        booster.ledger.save(tmp_path / "boosters.safetensors")
        return tmp_path / "boosters.safetensors"

    return write
