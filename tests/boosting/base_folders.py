"""Folders of a tiny Llama as transformers 4.x and 5.x leave them, with files that only a copy keeps as they are."""

import json
from pathlib import Path

from tests.fixtures.models import tiny_llama

THETA = 500000.0
# of transformers 4.57: what 5.x writes otherwise (rope_theta, torch_dtype), and a form of its own (indentation, order)
_CONFIG_OF_4 = """{
    "torch_dtype": "float32",
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama", "hidden_act": "silu",
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "rope_scaling": null, "rope_theta": 500000.0, "rms_norm_eps": 1e-06, "tie_word_embeddings": false,
    "bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.57.6"
}"""
_TOKENIZER_CONFIG_OF_4 = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "</s>",
    "eos_token": "</s>",
    "legacy": True,
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def write_base(folder: Path, form: str, tokenizer, *, sharded: bool, remote_code: bool = False) -> Path:
    """A model folder in the form of transformers "4" or "5", of one weight file or several."""
    model = tiny_llama(rope_parameters={"rope_theta": THETA, "rope_type": "default"})
    model.save_pretrained(folder, max_shard_size="20KB" if sharded else "1GB")
    tokenizer.save_pretrained(folder)
    if form == "4":
        (folder / "config.json").write_text(_CONFIG_OF_4)
        _rewrite(folder / "tokenizer_config.json", lambda entry: _TOKENIZER_CONFIG_OF_4)
        (folder / "special_tokens_map.json").write_text('{"bos_token": "</s>", "eos_token": "</s>"}')
        (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
        # of the base's weights in another format
        (folder / "pytorch_model.bin").write_bytes(b"stale")
    else:
        # no token that pads, and a generation configuration that transformers would not write so
        _rewrite(folder / "tokenizer_config.json", lambda entry: {k: v for k, v in entry.items() if k != "pad_token"})
    (folder / "generation_config.json").write_text('{"temperature": 0.6,  "top_p": 0.9, "eos_token_id": [2, 5]}\n')
    (folder / "README.md").write_bytes(b"# Theirs\r\n")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "download.lock").write_text("")
    if remote_code:
        code = "raise SystemExit('code of a model folder was run')\n"
        (folder / "modeling_theirs.py").write_text(code)
        _rewrite(
            folder / "config.json",
            lambda entry: {**entry, "auto_map": {"AutoModelForCausalLM": "modeling_theirs.LlamaForCausalLM"}},
        )
    return folder


def _rewrite(file: Path, change) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
