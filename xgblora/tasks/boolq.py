"""BoolQ: questions of people to a search engine, answered by yes or no from a passage (Clark et al., 2019).

Local files are the published ones, with the column `answer`, or SuperGLUE's (Wang et al., 2019), with the column
`label`. SuperGLUE's passages begin with the title of their page ("Ethanol fuel -- "); those on the hub do not.
"""

from collections.abc import Iterable, Mapping

from xgblora.errors import InputError
from xgblora.tasks.files import Row
from xgblora.tasks.row import text_of
from xgblora.tasks.sample import Sample
from xgblora.tasks.task import Task
from xgblora.tasks.template import Template

TEMPLATE = Template(
    "{passage} {question}\n",
    label="answer",
    label_words={"true": "Yes", "false": "No", "1": "Yes", "0": "No"},
    sfc_prompt="",
)


def to_sample(row: Mapping, origin: str) -> Sample:
    """The sample of a row; the question gets a capital letter and a question mark.

    Raises:
        InputError: a column is missing, or the question is empty.
    """
    question = text_of(row, "question", origin)
    if not question:
        raise InputError(f"{origin}: the question is empty")
    question = question if question.endswith("?") else f"{question}?"
    return TEMPLATE.sample({**row, "question": question[0].upper() + question[1:]}, origin)


def rows_of(row: dict, origin: str) -> Iterable[Row]:
    """The row with SuperGLUE's label under the name that it had in BoolQ."""
    yield ({**row, "answer": row["label"]} if "label" in row and "answer" not in row else row), origin


TASK = Task("BoolQ", to_sample, hub=("google/boolq", None), rows_of=rows_of, together="passage")
