#!/usr/bin/env python3
"""Make the demonstration: a tiny OPT language model and a sentiment task that it cannot do yet.

`xgblora-train` without arguments fine-tunes this model on this task, so both have to be small enough to travel with the
package and quick enough to train on two CPU cores. How they are made stands in scripts/demo.
"""

import argparse
import os
import random
import tempfile
from pathlib import Path

import torch
from transformers import OPTForCausalLM, PreTrainedTokenizerFast

from demo.figures import measure
from demo.grammar import pretraining_documents, take
from demo.pretraining import Recipe, build_model, pad_vocabulary, pretrain, token_batches
from demo.readme import readme
from demo.reviews import make_task, write_examples
from demo.tokenizer import train_tokenizer
from xgblora.atomic_file import write_text


def parse_arguments() -> argparse.Namespace:
    repository = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description="Make the demo model and the demo task.")
    parser.add_argument("--output", type=Path, default=repository / "xgblora" / "demo", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the text and of the model (default: %(default)s)")
    return parser.parse_args()


def write_model(folder: Path, model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Save model and tokenizer beside `folder` first, then move the files in."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".model-") as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for file in Path(temporary).iterdir():
            file.chmod(0o644)  # safetensors makes its files unreadable to others
            os.replace(file, folder / file.name)


def folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def print_progress(step: int, loss: float) -> None:
    if step % 200 == 0:
        print(f"step {step:5d}  loss {loss:.3f}", flush=True)


def main() -> None:
    arguments = parse_arguments()
    recipe = Recipe()
    torch.set_num_threads(1)  # sums are then the same on any number of cores
    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)

    task = make_task(rng, recipe.train_examples, recipe.dev_examples)
    documents = pretraining_documents(rng, task.sentences)
    tokenizer = train_tokenizer(take(documents, recipe.tokenizer_documents), recipe.vocabulary_size)
    batches = token_batches(documents, tokenizer, recipe, rng)
    model = build_model(recipe, len(tokenizer))
    pretrain(model, batches, recipe, print_progress)
    pad_vocabulary(model)
    figures = measure(model, tokenizer, task, [next(batches) for _ in range(20)])

    write_model(arguments.output / "opt-demo", model, tokenizer)
    write_examples(arguments.output / "reviews" / "train.tsv", task.train)
    write_examples(arguments.output / "reviews" / "dev.tsv", task.dev)
    write_text(arguments.output / "README.md", readme(arguments.seed, recipe, figures))
    print(f"{arguments.output}: {folder_size(arguments.output):,} bytes")
    for name, value in vars(figures).items():
        print(f"{name.replace('_', ' ')}: {round(value, 3):,}")


if __name__ == "__main__":
    main()
