"""DROP: questions that need counting, sorting or sums over a passage (Dua et al., 2019).

Local files are the published ones: `drop_dataset_train.json` and `drop_dataset_dev.json`.
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
    passage = text_of(row, "passage", origin)
    question = text_of(row, "question", origin).strip()
    prompt = f"Passage: {passage}\nQuestion: {question}\nAnswer:"
    return Sample.of_answers(prompt, texts_of(value_of(row, "answers_spans", origin), "spans", origin), origin)


def rows_of(record: dict, origin: str) -> Iterable[Row]:
    """A row for each question about each passage of the published JSON.

    A held-out question has several people's answers, and all of them count. The few questions whose answer is of two
    kinds at once, or of none, are left out, as on the hub.
    """
    if "passage" in record:
        yield record, origin
        return
    for section in record.values():
        for question in objects_of(section, "qa_pairs", origin):
            answers = question.get("validated_answers") or [value_of(question, "answer", origin)]
            if any(len(kinds_of(answer)) > 1 for answer in answers):
                continue
            spans = [span for answer in answers for kind in kinds_of(answer) for span in kind]
            if spans:
                row = {
                    "passage": value_of(section, "passage", origin),
                    "question": value_of(question, "question", origin),
                    "answers_spans": {"spans": spans},
                }
                yield row, f"{origin} question {question.get('query_id')}"


def kinds_of(answer: Mapping) -> list[list[str]]:
    """What an answer holds of a number, a date and spans of the passage, as texts; nearly always one of the three."""
    date = answer.get("date") or {}
    whole_date = " ".join(date.get(part, "") for part in ("day", "month", "year")).strip()
    kinds = ([answer.get("number", "")], [whole_date], answer.get("spans", []))
    return [kind for kind in kinds if any(kind)]


TASK = Task(
    "DROP",
    to_sample,
    hub=("ucinlp/drop", None),
    rows_of=rows_of,
    together="passage",
    generation=True,
    metrics=("f1", "em"),
)
