"""What a task is made of: samples with a prompt and candidate continuations, in named splits."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One question with its candidate answers.

    Attributes:
        prompt: the text before the answer.
        candidates: the whole text, prompt and answer, for each candidate.
        label: index of the right candidate.
        origin: where the sample came from, for error messages ("train.tsv line 7").
    """

    prompt: str
    candidates: tuple[str, ...]
    label: int
    origin: str


@dataclass(frozen=True)
class Splits:
    """The samples of a task: `train` to draw training and development sets from, `valid` to evaluate on."""

    train: list[Sample]
    valid: list[Sample]
