"""The model and its pre-training: what size, on how much text, and how."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from demo.grammar import take
from demo.tokenizer import EOS_ID, MAX_LENGTH, PAD_ID, START_ID


@dataclass(frozen=True)
class Recipe:
    """How much text and what model; the defaults are the demo's."""

    train_examples: int = 1000
    dev_examples: int = 500
    vocabulary_size: int = 1200
    tokenizer_documents: int = 20_000
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    ffn_size: int = 256
    steps: int = 2600
    batch_size: int = 64
    batches_per_pool: int = 50
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01


def build_model(recipe: Recipe, vocabulary_size: int) -> OPTForCausalLM:
    config = OPTConfig(
        vocab_size=vocabulary_size,
        hidden_size=recipe.hidden_size,
        word_embed_proj_dim=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        ffn_dim=recipe.ffn_size,
        max_position_embeddings=MAX_LENGTH,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        pad_token_id=PAD_ID,
        bos_token_id=EOS_ID,
        eos_token_id=EOS_ID,
        tie_word_embeddings=True,
    )
    return OPTForCausalLM(config)


def token_batches(
    documents: Iterator[str], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, rng: random.Random
) -> Iterator[list[list[int]]]:
    """Endless batches of token lists, each ended by `</s>`.

    A pool of documents at a time is sorted by length before it is cut into batches, so that little of it is padding.
    """
    while True:
        pool = take(documents, recipe.batch_size * recipe.batches_per_pool)
        rows = sorted(([*ids, EOS_ID] for ids in tokenizer(pool)["input_ids"]), key=len)
        batches = [rows[start : start + recipe.batch_size] for start in range(0, len(rows), recipe.batch_size)]
        rng.shuffle(batches)
        yield from batches


def language_model_loss(model: OPTForCausalLM, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Mean next-token loss of right-padded rows."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[PAD_ID] * (width - len(row))] for row in rows])
    mask = (ids != PAD_ID).long()
    labels = ids.masked_fill(mask == 0, -100)
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def pretrain(
    model: OPTForCausalLM, batches: Iterator[list[list[int]]], recipe: Recipe, report: Callable[[int, float], None]
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe))
    model.train()
    for step in range(1, recipe.steps + 1):
        loss = language_model_loss(model, next(batches))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step, loss.item())
    model.eval()


@torch.no_grad()
def pad_vocabulary(model: OPTForCausalLM, multiple: int = 8) -> None:
    """Give the embeddings rows for no token until their number is a multiple, which some converters ask for.

    They are copies of the row of `<s>`, which no text has: the model has learnt never to expect it, so that the
    probabilities of all tokens stay what they are to 1e-5.
    """
    rows = model.get_input_embeddings().weight
    known = len(rows)
    model.resize_token_embeddings(pad_to_multiple_of=multiple, mean_resizing=False)
    model.get_input_embeddings().weight[known:] = rows[START_ID]
