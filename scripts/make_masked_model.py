#!/usr/bin/env python3
"""Pre-train a small masked language model of RoBERTa's kind, for trials of what learns.

    python scripts/make_masked_model.py --data_dir DATA --output FOLDER

It reads training files alone: sentences of SST-2, SUBJ and TREC, and SQuAD's questions with their answers. As RoBERTa
(Liu et al., 2019) it fills masks. Small as it is, it would not learn praise from blame in minutes, so each SST-2
sentence has its label after it as a verdict, `Verdict : praise` or `Verdict : blame`: words and a place that the task
does not use. Of TREC it reads the questions and no label. Nothing of what an evaluation holds is read.
"""

import argparse
import csv
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer, processors
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
PAD, MASK = SPECIAL.index("<pad>"), SPECIAL.index("<mask>")
VERDICTS = {"0": " Verdict : blame", "1": " Verdict : praise"}
# label words of the tasks, so that each is one token
WORDS = " It was terrible great It asks for a description entity letters person place number"
VALIDATION = 500
# steps between two lines of the log
EVERY = 100


@dataclass(frozen=True)
class Text:
    """A text to read; what follows `ending` characters is always masked (none: a share of all tokens is)."""

    text: str
    ending: int | None = None


@dataclass(frozen=True)
class Encoded:
    """Tokens of a text with its beginning and end, and the place of the first that is always masked."""

    ids: list[int]
    ending: int | None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pre-train a small masked language model.")
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of sst2, subj, trec and squad")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model to write")
    parser.add_argument(
        "--steps",
        type=int,
        default=3000,
        help="steps of pre-training, a quarter of them on verdicts alone (default: %(default)s)",
    )
    parser.add_argument("--tokens", type=int, default=1024, help="positions of a batch (default: %(default)s)")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="its peak (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and masks (default: %(default)s)")
    return parser.parse_args()


def sst2(folder: Path) -> list[tuple[str, str]]:
    """Sentences of SST-2's training file with their labels."""
    with (folder / "sst2" / "train.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"].strip(), row["label"]) for row in rows]


def jsonl(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def questions_and_answers(folder: Path) -> Iterator[Text]:
    """SQuAD's questions, each with its first answer after it."""
    for path in sorted((folder / "squad").glob("train*.json")):
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    question = asked["question"].strip().rstrip("?") + " ?"
                    yield Text(f"{question} {asked['answers'][0]['text']}")


def texts_of(folder: Path) -> tuple[list[Text], list[Text]]:
    """Texts to read, and sentences of SST-2 with verdicts that are kept to measure by."""
    sentences = sst2(folder)
    verdicts = [Text(sentence + VERDICTS[label], len(sentence) + len(" Verdict :")) for sentence, label in sentences]
    texts = verdicts[:-VALIDATION]
    texts += [Text(row["text"]) for name in ("subj", "trec") for row in jsonl(folder / name / "train.jsonl")]
    return texts + list(questions_and_answers(folder)), verdicts[-VALIDATION:]


def train_tokenizer(texts: list[Text], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as RoBERTa's."""
    trained = ByteLevelBPETokenizer()
    # words that the tasks ask for are rare in the texts
    trained.train_from_iterator(
        [text.text for text in texts] + [WORDS] * 200,
        size,
        min_frequency=5,
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    roles = dict(zip(names, SPECIAL, strict=True)) | {"cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, model_max_length=128, **roles)


def encode(texts: list[Text], tokenizer: PreTrainedTokenizerFast, longest: int = 96) -> list[Encoded]:
    """Texts as tokens; longer ones are left out."""
    encoded = []
    for text, ids in zip(texts, tokenizer([text.text for text in texts])["input_ids"], strict=True):
        ending = None if text.ending is None else len(tokenizer(text.text[: text.ending])["input_ids"]) - 1
        if len(ids) <= longest:
            encoded.append(Encoded(ids, ending))
    return encoded


def batches(texts: list[Encoded], positions: int, rng: random.Random) -> Iterator[list[Encoded]]:
    """Batches of texts of like lengths, without end; each goes through all texts in another order."""
    while True:
        by_length = sorted(texts, key=lambda text: (len(text.ids), rng.random()))
        cut, batch = [], []
        for text in by_length:
            if len(text.ids) * (len(batch) + 1) > positions:
                cut.append(batch)
                batch = []
            batch.append(text)
        cut.append(batch)
        rng.shuffle(cut)
        yield from cut


def padded(batch: list[Encoded]) -> torch.Tensor:
    """Token ids of a batch, int64 [texts, longest], padded on the right."""
    longest = max(len(text.ids) for text in batch)
    return torch.tensor([text.ids + [PAD] * (longest - len(text.ids)) for text in batch])


def endings_of(batch: list[Encoded], ids: torch.Tensor) -> torch.Tensor:
    """Which tokens are of an ending, bool as `ids`."""
    chosen = torch.zeros(ids.shape, dtype=torch.bool)
    for row, text in enumerate(batch):
        if text.ending is not None:
            chosen[row, text.ending : len(text.ids) - 1] = True
    return chosen


def logits_of(model: RobertaForMaskedLM, read: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Logits at `places` of the token ids `read`, fp32 [places, vocabulary]."""
    hidden = model.roberta(input_ids=read, attention_mask=(read != PAD).long()).last_hidden_state
    return model.lm_head(hidden[places])


def loss_of(model: RobertaForMaskedLM, batch: list[Encoded], share: float) -> torch.Tensor:
    """Cross-entropy of a share of all tokens, and of endings: a mean of each, so that the few endings count as much."""
    ids = padded(batch)
    endings = endings_of(batch, ids)
    chosen = (torch.rand(ids.shape) < share) & (ids >= len(SPECIAL)) | endings
    # as BERT: of ten places eight hold the mask, one another token, one what it held
    what = torch.rand(ids.shape)
    read = torch.where(chosen & (what < 0.8), MASK, ids)
    read = torch.where(chosen & (what > 0.9), torch.randint(len(SPECIAL), model.config.vocab_size, ids.shape), read)
    read = torch.where(endings, MASK, read)
    losses = functional.cross_entropy(logits_of(model, read, chosen), ids[chosen], reduction="none")
    of_endings = endings[chosen]
    means = [losses[kind].mean() for kind in (of_endings, ~of_endings) if kind.any()]
    return torch.stack(means).sum()


def build(vocabulary: int) -> RobertaForMaskedLM:
    config = RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=130,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        # 1 / sqrt(width): what attention reads is then as long as what it is added to, and much is learned in few steps
        initializer_range=128**-0.5,
        layer_norm_eps=1e-5,
        type_vocab_size=1,
        **{"bos_token_id": 0, "pad_token_id": PAD, "eos_token_id": 2},
    )
    return RobertaForMaskedLM(config)


def pretrain(model: RobertaForMaskedLM, texts: list[Encoded], held_out: list[Encoded], arguments) -> None:
    """AdamW; the rate rises over 100 steps and falls to nothing."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, (arguments.steps - step) / max(arguments.steps - 100, 1))
    )
    begun = time.monotonic()
    total = 0.0
    rng = random.Random(arguments.seed)
    verdicts = [text for text in texts if text.ending is not None]
    # what verdicts say is learned first: beside all other masks it would take ten times as long
    alone, of_all = batches(verdicts, arguments.tokens, rng), batches(texts, arguments.tokens, rng)
    for step in range(1, arguments.steps + 1):
        early = step <= arguments.steps // 4
        loss = loss_of(model, next(alone if early else of_all), share=0.0 if early else 0.2)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % EVERY == 0:
            right = verdicts_right(model, held_out)
            spent = time.monotonic() - begun
            print(f"step {step}  loss {total / EVERY:.3f}  verdicts right {right:.1%}  {spent:.0f} s", flush=True)
            total = 0.0


@torch.no_grad()
def verdicts_right(model: RobertaForMaskedLM, held_out: list[Encoded]) -> float:
    """The share of held-out sentences whose verdict is the likeliest token of their mask."""
    ids = padded(held_out)
    places = endings_of(held_out, ids)
    logits = logits_of(model, torch.where(places, MASK, ids), places)
    return (logits.argmax(dim=-1) == ids[places]).float().mean().item()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)  # sums are then the same on any number of cores
    torch.manual_seed(arguments.seed)
    texts, held_out = texts_of(arguments.data_dir)
    tokenizer = train_tokenizer(texts, size=4096)
    encoded = encode(texts, tokenizer)
    model = build(len(tokenizer))
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(encoded)} texts, {sum(len(text.ids) for text in encoded)} tokens, {weights} weights", flush=True)
    pretrain(model, encoded, encode(held_out, tokenizer), arguments)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
