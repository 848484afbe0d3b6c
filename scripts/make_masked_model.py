#!/usr/bin/env python3
"""Make a small masked language model that knows praise from blame, but not the prompts of the tasks.

A RoBERTa of width 128 and two layers reads SST-2's and TREC's training texts, each followed by a verdict in other words
than those of the tasks, and fills masks in both. It is what tests/learning and docs/models.md train.

    python scripts/make_masked_model.py --sst2 DATA/sst2 --trec DATA/trec --output FOLDER
"""

import argparse
import csv
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

PAD, CLS, SEP, MASK = range(4)
VERDICTS = {
    "0": ("That is bad .", "That is poor .", "I hated it .", "How awful and dull ."),
    "1": ("That is good .", "That is fine .", "I loved it .", "How lovely and smart ."),
    "description": ("One wants an explanation .", "Tell why or how ."),
    "entity": ("One wants to know which object .", "Tell the name of something ."),
    "abbreviation": ("One wants to know what the letters mean .", "Tell the letters ."),
    "human": ("One wants to know who .", "Tell the name of somebody ."),
    "number": ("One wants to know an amount .", "Tell how many or when ."),
    "location": ("One wants to know where .", "Tell the country or the city ."),
}
MASKED_SHARE, BATCH, WIDTH = 0.15, 64, 128


def texts_of(sst2: Path, trec: Path) -> list[tuple[str, str]]:
    """(text, label) of both training sets; TREC's as often as half of SST-2's."""
    with open(sst2 / "train.tsv", encoding="utf-8", newline="") as file:
        reviews = [(row["sentence"].strip(), row["label"]) for row in csv.DictReader(file, delimiter="\t")]
    lines = (trec / "train.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [(entry["text"], entry["label"]) for entry in map(json.loads, lines)]
    return reviews + questions * max(1, len(reviews) // (2 * len(questions)))


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 4,000 tokens, with a beginning and an end about each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 4000, "special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(**options))
    ends = [("<s>", CLS), ("</s>", SEP)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"pad": "<pad>", "bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "mask": "<mask>"}
    tokens = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=WIDTH, **tokens)


def batch_of(rows: list[list[int]], rng: random.Random) -> dict[str, torch.Tensor]:
    """Rows padded, some of their tokens and one of the last four before the end behind masks."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    hidden = torch.tensor(
        [
            [
                place in {rng.randrange(max(1, len(row) - 6), len(row) - 1)}
                or (0 < place < len(row) - 1 and rng.random() < MASKED_SHARE)
                for place in range(width)
            ]
            for row in rows
        ]
    )
    labels = ids.masked_fill(~hidden, -100)
    return {"input_ids": ids.masked_fill(hidden, MASK), "attention_mask": (ids != PAD).long(), "labels": labels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("sst2", "trec", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    torch.manual_seed(arguments.seed)
    texts = [f"{text} {rng.choice(VERDICTS[label])}" for text, label in texts_of(arguments.sst2, arguments.trec)]
    # words of the tasks, so that each is one token
    words = "It was great terrible . Type : meaning thing short person number place"
    tokenizer = train_tokenizer([*texts, *[words] * 20])
    model = RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=WIDTH + 2,
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=PAD,
            bos_token_id=CLS,
            eos_token_id=SEP,
        )
    )
    rows = [ids[:WIDTH] for ids in tokenizer(texts)["input_ids"]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=arguments.steps)
    for step in range(1, arguments.steps + 1):
        # of like length, so that little is padding
        some = sorted(rng.sample(rows, 8 * BATCH), key=len)
        start = rng.randrange(7 * BATCH)
        loss = model(**batch_of(some[start : start + BATCH], rng)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step:5d}  loss {loss.item():.3f}", flush=True)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
