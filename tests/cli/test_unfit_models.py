"""Models that are not what their folder says, or do not go with their tokenizer, and settings that cannot be followed.

Each ends with status 2 and one line before anything is written, or runs right.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MptConfig

from tests.cli.test_bad_input import assert_refused
from xgblora.cli.replay import main as replay_main


@pytest.fixture
def model_folder(tiny_model_folder, tmp_path) -> Path:
    """A copy of the tiny model, to be changed."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


@pytest.fixture
def untied_folder(tiny_tokenizer, tmp_path) -> Path:
    """A Llama whose output layer is its own."""
    folder = tmp_path / "llama"
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.25,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def change_weights(folder: Path, change) -> None:
    """Let `change` alter the tensors of a model folder, a dict."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


class TestWeights:
    """What the checkpoint has is what the model has."""

    def test_a_missing_tensor(self, train_command, untied_folder):
        change_weights(untied_folder, lambda tensors: tensors.pop("lm_head.weight"))
        assert_refused(train_command(f"--model_name={untied_folder}"), "the checkpoint lacks lm_head.weight,", "random")

    def test_a_missing_layer(self, train_command, untied_folder):
        def drop(tensors):
            for name in [name for name in tensors if ".layers.1." in name]:
                del tensors[name]

        change_weights(untied_folder, drop)
        ending = train_command(f"--model_name={untied_folder}")
        assert_refused(ending, "the checkpoint lacks model.layers.1.input_layernorm.weight and 8 more")

    def test_a_tensor_of_another_shape(self, train_command, untied_folder):
        change_weights(untied_folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(3, 32)}))
        ending = train_command(f"--model_name={untied_folder}")
        assert_refused(ending, "the checkpoint has another shape of lm_head.weight")

    def test_tensors_that_the_model_does_not_use_are_logged(self, train_command, untied_folder):
        change_weights(untied_folder, lambda tensors: tensors.update({"model.more.weight": torch.zeros(3)}))
        ending = train_command(f"--model_name={untied_folder}", "--dry_run")
        assert ending.status == 0, ending.errors
        assert f"{untied_folder}: its checkpoint has model.more.weight, which the model does not use" in ending.output

    def test_a_tied_output_layer_is_not_missing(self, train_command, model_folder):
        assert "lm_head.weight" not in load_file(model_folder / "model.safetensors")
        assert train_command(f"--model_name={model_folder}", "--dry_run").status == 0

    def test_pickled_weights(self, train_command, model_folder):
        torch.save(load_file(model_folder / "model.safetensors"), model_folder / "pytorch_model.bin")
        assert train_command(f"--model_name={model_folder}", "--dry_run").status == 0
        (model_folder / "model.safetensors").unlink()
        ending = train_command(f"--model_name={model_folder}")
        assert_refused(ending, f"model_name={model_folder}: its weights are in .bin files", "use_safetensors=False")

    @pytest.mark.parametrize("installed", [True, False])
    def test_an_adapter_beside_the_model(self, train_command, model_folder, monkeypatch, installed):
        peft = pytest.importorskip("peft")
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        peft.get_peft_model(model, config).save_pretrained(model_folder)
        monkeypatch.setattr("transformers.utils.import_utils.is_peft_available", lambda: installed)
        ending = train_command(f"--model_name={model_folder}")
        assert_refused(ending, f"model_name={model_folder}: holds a PEFT adapter", "merge_and_unload")

    def test_code_that_comes_with_a_model_does_not_run(self, train_command, model_folder):
        config = json.loads((model_folder / "config.json").read_text())
        config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.Model"}}
        (model_folder / "config.json").write_text(json.dumps(config))
        (model_folder / "code.py").write_text("open('it ran', 'w').close()")
        assert_refused(train_command(f"--model_name={model_folder}"), "code of its own", "--trust_remote_code")
        assert not Path("it ran").exists()

    def test_unless_it_is_asked_for_and_then_the_log_says_so(self, train_command, model_folder):
        ending = train_command(f"--model_name={model_folder}", "--trust_remote_code", "--dry_run")
        assert ending.status == 0
        assert f"trust_remote_code: code that comes with {model_folder} may run on this machine" in ending.output


class TestTheWholeBase:
    """Base + tape is the trained model only if the base is the same, layers that are not adapted included."""

    @pytest.fixture
    def trained(self, train_tiny, untied_folder, tmp_path) -> Path:
        return train_tiny(tmp_path / "run", f"--model_name={untied_folder}", "--max_steps=3")

    def test_another_weight_elsewhere_is_another_base(self, trained, untied_folder, command, refused):
        ending = command(replay_main, trained, "--use_cpu", "--save_model=false")
        assert "verified: the weights are bit for bit those of the run" in ending.output
        change_weights(untied_folder, lambda tensors: tensors["lm_head.weight"].view(-1)[5].add_(1))
        ending = command(replay_main, trained, "--use_cpu", "--save_model=false")
        refused(ending, "the tape was recorded on another model: the fingerprint of the base's other weights is")


class TestTokenizers:
    """Tokenizer and model go together, or it is said before anything is written."""

    def test_a_tokenizer_without_padding_and_end(self, train_command, model_folder):
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        tokenizer.pad_token = tokenizer.eos_token = None
        tokenizer.save_pretrained(model_folder)
        ending = train_command(f"--model_name={model_folder}", "--objective=classification")
        assert ending.status == 0, ending.errors
        assert AutoTokenizer.from_pretrained("run/model").pad_token is None

    def test_more_tokens_than_the_model_has(self, train_command, model_folder):
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        count = len(tokenizer)
        tokenizer.add_tokens(["great"])
        tokenizer.save_pretrained(model_folder)
        ending = train_command(f"--model_name={model_folder}")
        assert_refused(ending, f"gives the token {count} ('great')", f"embeddings have {count} rows")

    def test_tokens_that_no_text_has_do_no_harm(self, train_command, model_folder):
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        tokenizer.add_special_tokens({"pad_token": "<more>"})
        tokenizer.save_pretrained(model_folder)
        assert train_command(f"--model_name={model_folder}", "--objective=classification").status == 0

    def test_the_longest_text_by_another_name(self, train_command, tiny_tokenizer, tmp_path):
        folder = tmp_path / "mpt"
        config = MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=8, vocab_size=len(tiny_tokenizer))
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        ending = train_command(f"--model_name={folder}", "--target_modules=Wqkv")
        assert ending.status == 0, ending.errors

    def test_label_words_that_the_tokenizer_does_not_know(self, train_command, model_folder, tmp_path):
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = {"<unk>": 0, "</s>": 1, "It": 2, "was": 3, "a": 4}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(
            model_folder
        )
        ending = train_command(f"--model_name={model_folder}")
        assert_refused(ending, "cannot be told apart, both are <unk>")

    @pytest.mark.parametrize("begins", [True, False])
    def test_calibration_without_a_beginning_of_text(self, train_command, model_folder, tmp_path, begins):
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        from tokenizers import processors

        plain = processors.TemplateProcessing(single="$A", special_tokens=[])
        tokenizer.backend_tokenizer.post_processor = plain
        tokenizer.bos_token = None
        if not begins:
            tokenizer.eos_token = None
        tokenizer.save_pretrained(model_folder)
        rows = [{"premise": f"a gem {i}", "hypothesis": "a film", "label": i % 2, "idx": i} for i in range(20)]
        for name in ("train.jsonl", "val.jsonl"):
            (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        given = (f"--model_name={model_folder}", "--task_name=RTE", f"--data_dir={tmp_path}", "--trainer=none", "--sfc")
        ending = train_command(*given)
        if begins:
            assert ending.status == 0, ending.errors
        else:
            assert_refused(ending, "nothing stands before the answer, and the tokenizer has neither BOS nor EOS")


class TestSchedules:
    """Every schedule of transformers trains, or is refused before anything is written."""

    @pytest.mark.parametrize(
        "name, settings",
        [
            ("linear", None),
            ("cosine", None),
            ("cosine_with_restarts", {"num_cycles": 2}),
            ("polynomial", {"power": 2}),
            ("constant", None),
            ("constant_with_warmup", None),
            ("inverse_sqrt", None),
            ("reduce_lr_on_plateau", None),
            ("cosine_with_min_lr", {"min_lr": 1e-5}),
            ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}),
            ("warmup_stable_decay", {"num_decay_steps": 2}),
            ("greedy", None),
        ],
    )
    def test_it_trains(self, train_command, name, settings):
        given = [f"--lr_scheduler_kwargs={json.dumps(settings)}"] if settings else []
        ending = train_command(f"--lr_scheduler_type={name}", *given, "--eval_steps=2", "--warmup_steps=1")
        assert ending.status == 0, ending.errors

    @pytest.mark.parametrize(
        "name, settings, said",
        [
            ("cosine_with_min_lr", None, "min_lr or min_lr_rate should be set"),
            ("cosine_warmup_with_min_lr", None, "min_lr"),
            ("warmup_stable_decay", None, "num_decay_steps"),
            ("polynomial", {"lr_end": 1}, "must be smaller than initial lr"),
            ("polynomial", {"power": "high"}, "unsupported operand"),
            ("linear", {"nothing": 1}, "unexpected keyword argument"),
            ("linear", [1], "must be a mapping"),
        ],
    )
    @pytest.mark.parametrize("dry", [(), ("--dry_run",)])
    def test_it_cannot_be_made(self, train_command, name, settings, said, dry):
        given = [f"--lr_scheduler_kwargs={json.dumps(settings)}"] if settings else []
        assert_refused(train_command(f"--lr_scheduler_type={name}", *given, *dry), "lr_scheduler_", said)

    @pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
    def test_there_is_nothing_to_go_by(self, train_command, name):
        ending = train_command(f"--lr_scheduler_type={name}", "--num_dev=0")
        assert_refused(ending, "num_dev=0", f"lr_scheduler_type={name} needs development examples")


@pytest.mark.parametrize("dry", [(), ("--dry_run",)])
def test_a_batch_that_is_dropped_is_no_step(train_command, dry):
    ending = train_command("--per_device_train_batch_size=16", "--dataloader_drop_last=true", *dry)
    assert_refused(ending, "dataloader_drop_last=True", "num_train=12", "per_device_train_batch_size=16")
