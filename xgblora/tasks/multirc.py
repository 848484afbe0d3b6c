"""MultiRC: is this one of the right answers to a question about a paragraph? (Khashabi et al., 2018.)

Local files are SuperGLUE's (Wang et al., 2019): `train.jsonl` and `val.jsonl` with a paragraph, its questions and their
answers a line. The prompt is PromptSource's (Bach et al., 2022). As in MeZO each answer is a sample, and the metric is
accuracy over them.
"""

from collections.abc import Iterable

from xgblora.tasks.files import Row
from xgblora.tasks.row import objects_of, value_of
from xgblora.tasks.task import Task
from xgblora.tasks.template import Template

TEMPLATE = Template(
    '{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n',
    label="label",
    label_words={"0": "No", "1": "Yes", "false": "No", "true": "Yes"},
    sfc_prompt="",
)


def rows_of(row: dict, origin: str) -> Iterable[Row]:
    """A row for each answer to each question about the paragraph of a line."""
    if "passage" not in row:
        yield row, origin
        return
    for question in objects_of(row["passage"], "questions", origin):
        for answer in objects_of(question, "answers", origin):
            yield (
                {
                    "paragraph": value_of(row["passage"], "text", origin),
                    "question": value_of(question, "question", origin),
                    "answer": value_of(answer, "text", origin),
                    "label": value_of(answer, "label", origin),
                },
                f"{origin}, question {question.get('idx')}, answer {answer.get('idx')}",
            )


TASK = Task("MultiRC", TEMPLATE.sample, hub=("aps/super_glue", "multirc"), rows_of=rows_of, together="paragraph")
