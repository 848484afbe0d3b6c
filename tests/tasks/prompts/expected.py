"""What is expected of a row whose answer is one of several."""

from typing import NamedTuple


class Expected(NamedTuple):
    """The texts of one row; `right` are the candidates that count, the first is trained."""

    prompt: str
    candidates: list[str]
    right: tuple[int, ...]
    sfc_prompt: str
    sfc_candidates: list[str]
