"""Masked models, classification heads and encoders with a decoder from `xgblora-train` to what is taken away."""

import shutil

import pytest
import torch
import transformers

from tests.cli.exports import same, tensors_of
from xgblora import Ledger, Tape
from xgblora.cli.export import main as export
from xgblora.cli.replay import main as command_replay

SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
T5 = {
    "vocab_size": 400,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "tie_word_embeddings": True,
}
BART = {
    **{"vocab_size": 400, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
}
MODELS = {
    "roberta": ("RobertaForMaskedLM", {**SIZES, "max_position_embeddings": 66}),
    "bert": ("BertForMaskedLM", SIZES),
    "t5": ("T5ForConditionalGeneration", T5),
    "bart": ("BartForConditionalGeneration", BART),
    "opt": ("OPTForCausalLM", None),
}
ROUNDS = ("--max_steps=6", "--xgblora_steps_per_iteration=2", "--save_strategy=steps", "--save_steps=3")


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory, tiny_tokenizer, tiny_model_folder):
    """A function that gives the folder of a small random model."""
    made = {"opt": tiny_model_folder}

    def folder(kind: str):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("models") / kind
            class_name, sizes = MODELS[kind]
            special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1}
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = getattr(transformers, class_name)(transformers.CONFIG_MAPPING[kind](**sizes, **special))
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        torch.nn.init.normal_(parameter, std=0.2)
            model.save_pretrained(made[kind])
            tokenizer = transformers.PreTrainedTokenizerFast(
                tokenizer_object=tiny_tokenizer.backend_tokenizer,
                pad_token="<pad>",
                eos_token="</s>",
                bos_token="</s>",
                mask_token=tiny_tokenizer.convert_ids_to_tokens(2),
            )
            tokenizer.save_pretrained(made[kind])
        return made[kind]

    return folder


@torch.no_grad()
def logits_of(model):
    ids = torch.tensor([[1, 20, 21, 22, 23]])
    more = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
    return model.eval()(input_ids=ids, **more).logits


KINDS = (("roberta",), ("opt", "--head"), ("bert", "--head"), ("t5",))


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_from_training_to_all_that_is_taken_away(kind, base_folder, run_in, tmp_path, capsys):
    base, *flags = kind
    flags = (f"--model_name={base_folder(base)}", *flags, *ROUNDS)
    run = run_in(tmp_path / "run", *flags)
    assert run.merge_lines == ["step 2", "step 4", "step 6"]
    trained = tensors_of(run.folder / "model")
    # killed after its first checkpoint, and gone on
    half = tmp_path / "half"
    shutil.copytree(run.folder / "checkpoint-3", half / "checkpoint-3")
    resumed = run_in(half, *flags, "--resume_from_checkpoint=last")
    assert same(tensors_of(resumed.folder / "model"), trained)
    # from the tape, and from the boosters
    command_replay([str(run.folder)])
    export([str(run.folder)])
    said = capsys.readouterr().out
    assert "verified: the weights are bit for bit those of the run" in said
    for name in ("replayed", "exported-merged"):
        assert same(tensors_of(run.folder / name), trained)
    auto_class = said.rpartition("model = ")[2].partition(".")[0]
    merged = getattr(transformers, auto_class).from_pretrained(run.folder / "exported-merged")
    assert type(merged).__name__ == Ledger.load(run.folder / "boosters.safetensors").origin.architecture
    assert Tape.load(run.folder / "tape.bin").header.origin.architecture == type(merged).__name__


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_peft_computes_the_same(kind, base_folder, run_in, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    base, *flags = kind
    run = run_in(tmp_path / "run", f"--model_name={base_folder(base)}", *flags, "--trainer=regular", *ROUNDS)
    export([str(run.folder), "--format=peft"])
    load_it = capsys.readouterr().out.rpartition("load it: ")[2]
    auto_class = load_it.partition("(")[2].partition(".")[0]
    given = {auto_class: getattr(transformers, auto_class), "PeftModel": peft.PeftModel}
    names = {}
    exec(load_it, given, names)
    merged = given[auto_class].from_pretrained(run.folder / "model")
    ours, theirs = logits_of(names["model"]), logits_of(merged)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    plain = given[auto_class].from_pretrained(base_folder(base))
    assert (logits_of(plain) - theirs).abs().max() > 1e-3 * theirs.abs().max()


def test_a_head_is_drawn_from_the_seed_and_named(base_folder, run_in, tmp_path):
    flags = (f"--model_name={base_folder('opt')}", "--head", "--trainer=none")
    folders = [run_in(tmp_path / str(number), *flags, f"--seed={seed}") for number, seed in enumerate((3, 3, 4))]
    first, same_seed, other = ((run.folder / "predictions.jsonl").read_text() for run in folders)
    assert first == same_seed != other
    assert "The head is drawn from seed 3: score.weight" in folders[0].log
