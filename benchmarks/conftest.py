"""The model and the batch that the benchmarks run on: random weights; OPT-125m's shape on a GPU, a small one else."""

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from xgblora.tasks import Collator, EncodedExample

EXAMPLES, LENGTH = 16, 48


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def dtype(device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@pytest.fixture
def model(device, dtype) -> OPTForCausalLM:
    """OPT-125m's shape on a GPU; on a CPU four of its layers at half the width and a fifth of the vocabulary."""
    torch.manual_seed(0)
    width, layers, vocabulary = (768, 12, 50272) if device.type == "cuda" else (384, 4, 10_000)
    config = OPTConfig(
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        vocab_size=vocabulary,
    )
    return OPTForCausalLM(config).to(device, dtype).eval()


@pytest.fixture
def batch(device, model) -> dict[str, torch.Tensor]:
    """16 examples of 48 tokens with two candidates of one token."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, model.config.vocab_size, (EXAMPLES, LENGTH - 1), generator=generator)
    examples = [
        EncodedExample((tuple(row.tolist()),), ((0, LENGTH - 2),), (((0, 5),), ((0, 6),)), label=i % 2)
        for i, row in enumerate(ids)
    ]
    return {name: value.to(device) for name, value in Collator(pad_token_id=1)(examples).items()}
