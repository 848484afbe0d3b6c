"""SQuAD v1.1: questions that a passage of Wikipedia answers in its own words (Rajpurkar et al., 2016).

Local files are the published ones: `train-v1.1.json` and `dev-v1.1.json`.
"""

from collections.abc import Iterable, Mapping

from xgblora.tasks.files import Row
from xgblora.tasks.row import objects_of, text_of, texts_of, value_of
from xgblora.tasks.sample import Sample
from xgblora.tasks.task import Task


def to_sample(row: Mapping, origin: str) -> Sample:
    """The sample of a row.

    Raises:
        InputError: a column is missing, or there is no answer.
    """
    title, context = (text_of(row, column, origin) for column in ("title", "context"))
    question = text_of(row, "question", origin).strip()
    prompt = f"Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:"
    return Sample.of_answers(prompt, texts_of(value_of(row, "answers", origin), "text", origin), origin)


def rows_of(record: dict, origin: str) -> Iterable[Row]:
    """A row for each question about each paragraph of each article of the published JSON."""
    if "data" not in record:
        yield record, origin
        return
    for article in objects_of(record, "data", origin):
        for paragraph in objects_of(article, "paragraphs", origin):
            for question in objects_of(paragraph, "qas", origin):
                answers = [value_of(answer, "text", origin) for answer in objects_of(question, "answers", origin)]
                yield (
                    {
                        "title": value_of(article, "title", origin),
                        "context": value_of(paragraph, "context", origin),
                        "question": value_of(question, "question", origin),
                        "answers": {"text": answers},
                    },
                    f"{origin} question {question.get('id')}",
                )


TASK = Task(
    "SQuAD",
    to_sample,
    hub=("rajpurkar/squad", None),
    rows_of=rows_of,
    together="title",
    generation=True,
    metrics=("f1", "em"),
)
