"""ReCoRD: which entity of a news article fills the gap in a sentence about it? (Zhang et al., 2018.)

Local files are SuperGLUE's (Wang et al., 2019): `train.jsonl` and `val.jsonl` with an article and its queries a line.
The prompt is GPT-3's (Brown et al., 2020): the article's highlights become a list, and the filled sentence its last
entry. The gap may be anywhere in the sentence, so that all of it is the option that is scored.
"""

from collections.abc import Iterable, Mapping

from xgblora.errors import InputError
from xgblora.tasks.files import Row
from xgblora.tasks.row import objects_of, text_of, texts_of, value_of
from xgblora.tasks.sample import Sample
from xgblora.tasks.task import Task


def to_sample(row: Mapping, origin: str) -> Sample:
    """The sample of a row; every entity that means the same is right, the first of them is trained.

    Raises:
        InputError: a column is missing, or no answer is among the entities.
    """
    article = text_of(row, "passage", origin).replace("@highlight\n", "- ")
    query = text_of(row, "query", origin)
    entities = texts_of(row, "entities", origin)
    right = [entities.index(answer) for answer in texts_of(row, "answers", origin) if answer in entities]
    if not right:
        raise InputError(f"{origin}: none of the entities is an answer")
    sentences = [f"- {query.replace('@placeholder', entity)}" for entity in entities]
    return Sample.of_choices(
        f"{article}\n-",
        [f"{article}\n{sentence}" for sentence in sentences],
        right[0],
        origin,
        also_right=tuple(right[1:]),
        sfc_prompt="-",
        sfc_candidates=sentences,
    )


def rows_of(row: dict, origin: str) -> Iterable[Row]:
    """A row for each query about the article of a line; entities and answers are sorted, each once."""
    if "qas" not in row:
        yield row, origin
        return
    article = value_of(row, "passage", origin)
    text = text_of(article, "text", origin)
    entities = sorted({text[span["start"] : span["end"] + 1] for span in objects_of(article, "entities", origin)})
    for number, query in enumerate(objects_of(row, "qas", origin), start=1):
        answers = sorted({text_of(answer, "text", origin) for answer in objects_of(query, "answers", origin)})
        yield (
            {"passage": text, "query": value_of(query, "query", origin), "entities": entities, "answers": answers},
            f"{origin}, query {number}",
        )


TASK = Task("ReCoRD", to_sample, hub=("aps/super_glue", "record"), rows_of=rows_of, together="passage")
