"""COPA: which of two sentences is the cause, or the effect, of a third? (Roemmele et al., 2011.)

Local files are SuperGLUE's (Wang et al., 2019): `train.jsonl` and `val.jsonl`.
"""

from collections.abc import Mapping

from xgblora.errors import InputError
from xgblora.tasks.row import spelling, text_of, value_of
from xgblora.tasks.sample import Sample
from xgblora.tasks.task import Task

CONJUNCTIONS = {"effect": "so", "cause": "because"}


def to_sample(row: Mapping, origin: str) -> Sample:
    """The premise and each choice as one sentence, joined by "so" or "because".

    Raises:
        InputError: a column is missing, the question is not cause or effect, or the label not 0 or 1.
    """
    premise = text_of(row, "premise", origin).rstrip().removesuffix(".")
    question, label = (spelling(value_of(row, column, origin)) for column in ("question", "label"))
    if question not in CONJUNCTIONS:
        raise InputError(f"{origin}: question={question}: must be cause or effect")
    if label not in ("0", "1"):
        raise InputError(f"{origin}: label={label}: must be 0 or 1")
    conjunction = CONJUNCTIONS[question]
    choices = [within_a_sentence(text_of(row, column, origin)) for column in ("choice1", "choice2")]
    return Sample.of_choices(
        f"{premise} {conjunction} ",
        [f"{premise} {conjunction} {choice}" for choice in choices],
        int(label),
        origin,
        sfc_prompt=conjunction,
        sfc_candidates=[f"{conjunction} {choice}" for choice in choices],
    )


def within_a_sentence(sentence: str) -> str:
    """`sentence` as it continues another: its first word in lower case, unless it is "I"."""
    first, space, rest = sentence.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


TASK = Task("Copa", to_sample, hub=("aps/super_glue", "copa"))
