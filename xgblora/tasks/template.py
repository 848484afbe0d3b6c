"""Templates: prompts with columns of the data in braces, and one label word for each value of the label."""

import functools
import string
from collections.abc import Mapping
from dataclasses import dataclass

from xgblora.errors import InputError
from xgblora.tasks.row import listed, spelling, text_of, value_of
from xgblora.tasks.sample import Sample


@dataclass(frozen=True)
class Template:
    """A prompt that each candidate's label word follows.

    Attributes:
        text: the prompt, with columns of the data in braces: "{sentence} It was".
        label: the column that holds the label.
        label_words: the word for each value of the label as text ("0", "true", "entailment"). Several values may have
            the same word; the words, in this order, are the candidates.
        sfc_prompt: what the words follow for calibration, often nothing; None: no calibration.
        strips: cut the white space around each column.
    """

    text: str
    label: str
    label_words: Mapping[str, str]
    sfc_prompt: str | None = None
    strips: bool = False

    def sample(self, row: Mapping, origin: str) -> Sample:
        """The sample of a row.

        Raises:
            InputError: a column is missing or empty, or the label is none of `label_words`.
        """
        words = list(dict.fromkeys(self.label_words.values()))
        value = value_of(row, self.label, origin)
        if spelling(value) not in self.label_words:
            raise InputError(f"{origin}: {self.label}={value}: must be {listed(list(self.label_words))}")
        prompt = fill(self.text, row, origin, strips=self.strips)
        return Sample.of_choices(
            prompt,
            [joined(prompt, word) for word in words],
            words.index(self.label_words[spelling(value)]),
            origin,
            sfc_prompt=self.sfc_prompt,
            sfc_candidates=[] if self.sfc_prompt is None else [joined(self.sfc_prompt, word) for word in words],
        )


def fill(text: str, row: Mapping, origin: str, *, strips: bool = False) -> str:
    """`text` with the columns that it names in braces.

    Raises:
        InputError: a column is missing, is no text, or, if its white space is cut, is empty.
    """
    values = {column: text_of(row, column, origin) for column in columns_of(text)}
    if strips:
        values = {column: value.strip() for column, value in values.items()}
        for column, value in values.items():
            if not value:
                raise InputError(f"{origin}: the {column} is empty")
    return text.format(**values)


@functools.cache
def columns_of(text: str) -> tuple[str, ...]:
    """The columns that a template names.

    Raises:
        InputError: the braces are not in order.
    """
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise InputError(
            f"the template {text!r} has a brace too many ({error}); a brace itself is {{{{ or }}}}"
        ) from None
    columns = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    for name, spec, conversion in columns:
        if not name.isidentifier() or spec or conversion:
            raise InputError(f"the template {text!r} has {{{name}}}: in braces stands the name of a column, no more")
    return tuple(dict.fromkeys(name for name, _, _ in columns))


def joined(prompt: str, answer: str) -> str:
    """`prompt`, a space unless it ends with white space or is empty, and `answer`."""
    return prompt + answer if not prompt or prompt[-1].isspace() else f"{prompt} {answer}"
