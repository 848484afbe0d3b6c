"""Prompts of rows of data: by a template with columns in braces, or by the tokenizer's chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xgblora.errors import InputError, in_one_line
from xgblora.tasks.files import Row
from xgblora.tasks.row import objects_of, text_of
from xgblora.tasks.template import fill

# the column that a chat template takes: a list of messages, or one text that the user says
CHAT_COLUMNS = ("messages", "prompt")


@dataclass(frozen=True)
class Prompt:
    """What members are asked.

    Attributes:
        text: as a reward sees it.
        row: of the data.
        origin: of the row, "sums.jsonl line 7".
        ids: the tokens, where they are no more than those of the text (a chat template's special tokens); else None.
    """

    text: str
    row: dict
    origin: str
    ids: tuple[int, ...] | None = None


def prompts_by_template(rows: Sequence[Row], template: str) -> list[Prompt]:
    """The prompts of rows (see `xgblora.tasks.files.read_rows`) by a template such as "{question} Answer:".

    Raises:
        InputError: a row has not a column that the template names, or its braces are not in order.
    """
    return [Prompt(fill(template, row, origin), row, origin) for row, origin in rows]


def prompts_by_chat(rows: Sequence[Row], tokenizer: Any, column: str | None = None) -> list[Prompt]:
    """The prompts of rows by the chat template of a tokenizer of transformers.

    Args:
        rows: see `xgblora.tasks.files.read_rows`.
        column: holds a list of messages, `{"role": ..., "content": ...}`, or what the user says; None: `messages` if
            the first row has it, else `prompt`.

    Raises:
        InputError: the tokenizer has no chat template, a row has no such column, or the template refuses its messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"the tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__} has no chat template; "
            "give a prompt template with columns in braces instead"
        )
    if column is None:
        column = next((name for name in CHAT_COLUMNS if rows and name in rows[0][0]), CHAT_COLUMNS[-1])
    return [_chat_prompt(row, origin, tokenizer, column) for row, origin in rows]


def _chat_prompt(row: dict, origin: str, tokenizer: Any, column: str) -> Prompt:
    if isinstance(row.get(column), list):
        messages = objects_of(row, column, origin)
    else:
        messages = [{"role": "user", "content": text_of(row, column, origin)}]
    # templates are programs, and raise what they like
    with in_one_line(Exception, about=f"{origin}: the chat template refuses it: "):
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return Prompt(text, row, origin, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))
