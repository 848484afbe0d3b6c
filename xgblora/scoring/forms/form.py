"""`ModelForm`: what kind of model reads the texts of a task: how it is loaded, what it reads and how it is scored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


class Scorer(Protocol):
    """Scores the candidates of batches.

    Attributes:
        packs: whether batches run without padding.
    """

    packs: bool

    def scores(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """fp32 [B, C], the mean log-probability of each candidate; -inf for padding candidates."""

    def relative_scores(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """`scores` less a number of each example, or as they are: for what reads their order or their softmax."""


@dataclass(frozen=True)
class ModelForm:
    """A kind of model.

    Attributes:
        name: what messages call it.
        auto_class: transformers' class that loads it.
        peft_task: what PEFT calls its task; None: PEFT wraps it as any module.
        has: whether a class of transformers, by its name, is of this kind.
        writes: whether it can write texts, and be trained on whole ones.
        encode: `(samples, tokenizer, model, *, max_length, only_right=False) -> examples`, each with `sequences`,
            `options`, `label`, `ids` and a length, as of `EncodedExample`.
        collator: `(pad_token_id, few_shapes) -> collate`, which makes batches of examples.
        scorer: `(model, longest) -> Scorer` for texts of up to `longest` tokens; None: of a few.
        log_probabilities: `(model, examples, *, tokens)`, for each example the mean log-probability of its candidates.
    """

    name: str
    auto_class: type
    peft_task: str | None
    has: Callable[[str], bool]
    encode: Callable[..., list]
    collator: Callable[[int, bool], Callable[[list], dict[str, Any]]]
    scorer: Callable[[nn.Module, int | None], Scorer]
    log_probabilities: Callable[..., list[list[float]]]
    writes: bool = False
