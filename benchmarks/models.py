"""The models and the batch that the benchmarks run on: random weights, in published shapes and a small one."""

import torch
from transformers import OPTConfig, OPTForCausalLM

from xgblora.scoring import Collator, EncodedExample

# the shapes of facebook/opt-125m, opt-350m and opt-1.3b, and one that a CPU steps through in a fifth of a second
SHAPES = {
    "small": {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6, "vocab_size": 10_000},
    "opt-125m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "opt-350m": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "word_embed_proj_dim": 512,
        "do_layer_norm_before": False,
    },
    "opt-1.3b": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32},
}
EXAMPLES = 16


def random_model(shape: str, device: torch.device, dtype: torch.dtype) -> OPTForCausalLM:
    """OPT of a shape in `SHAPES` with random weights, in eval mode."""
    torch.manual_seed(0)
    settings = {"word_embed_proj_dim": SHAPES[shape]["hidden_size"], **SHAPES[shape]}
    config = OPTConfig(ffn_dim=4 * settings["hidden_size"], **settings)
    with torch.device(device):
        return OPTForCausalLM(config).to(dtype).eval()


def random_batch(model: OPTForCausalLM, length: int) -> dict[str, torch.Tensor]:
    """16 examples of `length` tokens with two candidates of one token, the last."""
    return on_device(Collator(pad_token_id=1)(random_examples(model, length, EXAMPLES)), model.device)


def random_examples(model: OPTForCausalLM, length: int, count: int) -> list[EncodedExample]:
    """Examples as those of `random_batch`, the same ones first."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, model.config.vocab_size, (count, length - 1), generator=generator)
    return [
        EncodedExample((tuple(row.tolist()),), ((0, length - 2),), (((0, 5),), ((0, 6),)), label=i % 2)
        for i, row in enumerate(ids)
    ]


def on_device(batch: dict, device: torch.device) -> dict:
    """`batch` with its tensors on `device`."""
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
