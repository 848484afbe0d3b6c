"""WSC: whom does a pronoun mean? (Levesque et al., 2012; SuperGLUE: Wang et al., 2019.)

Local files are SuperGLUE's: `train.jsonl` and `val.jsonl`. The prompt is PromptSource's (Bach et al., 2022). MeZO takes
the hub's `wsc.fixed`, where a noun is spelt as in its sentence ("the table", not "The table"); `as_in_the_text` does
this to SuperGLUE's files, where it changes every sixth noun.
"""

from collections.abc import Iterable, Mapping

from xgblora.tasks.files import Row
from xgblora.tasks.row import text_of
from xgblora.tasks.sample import Sample
from xgblora.tasks.task import Task
from xgblora.tasks.template import Template

TEMPLATE = Template(
    '{text}\nIn the previous sentence, does the pronoun "{span2_text}" refer to {span1_text}? Yes or No?\n',
    label="label",
    label_words={"false": "No", "true": "Yes", "0": "No", "1": "Yes"},
    sfc_prompt="",
)


def to_sample(row: Mapping, origin: str) -> Sample:
    """The sample of a row; the pronoun is written in lower case.

    Raises:
        InputError: a column is missing.
    """
    return TEMPLATE.sample({**row, "span2_text": text_of(row, "span2_text", origin).lower()}, origin)


def rows_of(row: dict, origin: str) -> Iterable[Row]:
    """The row with the spans that SuperGLUE keeps in `target`, spelt as in the text."""
    if "target" in row:
        text = text_of(row, "text", origin)
        spans = {span: text_of(row["target"], span, origin) for span in ("span1_text", "span2_text")}
        row = {**row, **{name: as_in_the_text(span, text) for name, span in spans.items()}}
    yield row, origin


def as_in_the_text(span: str, text: str) -> str:
    """`span`, or the spelling that is in `text`: with a small or capital first letter, no full stop, no line end."""
    cleaned = span.rstrip(".").replace("\n", " ")
    spellings = (span, cleaned, cleaned[:1].lower() + cleaned[1:], cleaned[:1].upper() + cleaned[1:])
    return next((spelling for spelling in spellings if spelling in text), span)


TASK = Task("WSC", to_sample, hub=("aps/super_glue", "wsc.fixed"), rows_of=rows_of)
