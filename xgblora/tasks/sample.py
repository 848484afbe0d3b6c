"""What a task is made of: samples with a prompt and the texts that may follow it, in named splits."""

from collections.abc import Sequence
from dataclasses import dataclass

from xgblora.errors import InputError


@dataclass(frozen=True)
class Sample:
    """One question with its candidate answers, or, where the answer is to be generated, with its right answer.

    Attributes:
        prompt: the text before the answer.
        candidates: the whole text, prompt and answer, for each candidate; of a generation task the right answer alone.
        label: index of the right candidate, the one that is trained.
        origin: where the sample came from, for error messages ("train.tsv line 7").
        also_right: further candidates that count as right.
        answers: of a generation task, every answer that counts as right.
        sfc_prompt, sfc_candidates: prompt and candidates without the question, whose scores calibrate those of the
            candidates (surface form competition: Holtzman et al., 2021); None and empty where there are none.
    """

    prompt: str
    candidates: tuple[str, ...]
    label: int
    origin: str
    also_right: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()
    sfc_prompt: str | None = None
    sfc_candidates: tuple[str, ...] = ()

    @classmethod
    def of_choices(
        cls,
        prompt: str,
        candidates: Sequence[str],
        label: int,
        origin: str,
        *,
        also_right: tuple[int, ...] = (),
        sfc_prompt: str | None = None,
        sfc_candidates: Sequence[str] = (),
    ) -> "Sample":
        """A sample whose answer is chosen; all texts are trimmed as MeZO trims them."""
        return cls(
            trimmed(prompt),
            tuple(map(trimmed, candidates)),
            label,
            origin,
            also_right=also_right,
            sfc_prompt=None if sfc_prompt is None else trimmed(sfc_prompt),
            sfc_candidates=tuple(map(trimmed, sfc_candidates)),
        )

    @classmethod
    def of_answers(cls, prompt: str, answers: Sequence[str], origin: str) -> "Sample":
        """A sample whose answer is generated: the first of `answers` is trained, and the line end that closes it.

        Raises:
            InputError: there is no answer.
        """
        if not answers:
            raise InputError(f"{origin}: there is no answer")
        return cls(trimmed(prompt), (trimmed(f"{prompt} {answers[0]}\n"),), 0, origin, answers=tuple(answers))

    @property
    def right(self) -> tuple[int, ...]:
        """All candidates that count as right."""
        return (self.label, *self.also_right)

    @property
    def demonstration(self) -> str:
        """The text that shows the right answer in front of another sample; `Task.separator` stands between them."""
        return self.candidates[self.label].strip()


@dataclass(frozen=True)
class Splits:
    """The samples of a task: `train` to draw training and development sets from, `valid` to evaluate on."""

    train: Sequence[Sample]
    valid: Sequence[Sample]


def trimmed(text: str) -> str:
    """`text` without white space before it and spaces after it; a line end there belongs to the prompt."""
    return text.lstrip().rstrip(" ")
