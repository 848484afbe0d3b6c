"""The task: distinct reviews to train on and to test with, half of each praise and half blame."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.grammar import review
from xgblora.atomic_file import write_text


@dataclass(frozen=True)
class Example:
    sentence: str
    label: int


@dataclass(frozen=True)
class Task:
    train: list[Example]
    dev: list[Example]

    @property
    def sentences(self) -> frozenset[str]:
        return frozenset(example.sentence for example in self.train + self.dev)


def make_task(rng: random.Random, train_size: int, dev_size: int) -> Task:
    """Distinct reviews, half of each split praise and half blame."""
    seen: set[str] = set()

    def balanced(size: int) -> list[Example]:
        examples = []
        while len(examples) < size:
            label = len(examples) % 2
            sentence = review(rng, label)
            if sentence not in seen:
                seen.add(sentence)
                examples.append(Example(sentence, label))
        rng.shuffle(examples)
        return examples

    return Task(train=balanced(train_size), dev=balanced(dev_size))


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """GLUE's format of SST-2: tab-separated, with a header line."""
    lines = ["sentence\tlabel", *(f"{example.sentence}\t{example.label}" for example in examples)]
    write_text(path, "\n".join(lines) + "\n")
