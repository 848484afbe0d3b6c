"""The objective `f1`: 1 - F1 of what the model writes, MeZO's non-differentiable objective of SQuAD and DROP."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from xgblora.scoring.generation import write_after
from xgblora.scoring.live_rows import left_padded
from xgblora.tasks.metrics import f1


@dataclass(frozen=True)
class Question:
    """A prompt in token ids, and every answer that counts as right."""

    ids: tuple[int, ...]
    answers: tuple[str, ...]

    def __len__(self) -> int:
        """Length of the prompt."""
        return len(self.ids)


@dataclass(frozen=True)
class QuestionCollator:
    """Make a batch of B questions: `input_ids`, `attention_mask` [B, T], padded on the left, and the list `answers`.

    `copies` says how often they stand in the batch, and `groups` how many adapters read it: once, and one. What repeats
    a batch repeats tensors, not the list.
    """

    pad_token_id: int

    def __call__(self, questions: list[Question]) -> dict[str, Any]:
        ids, mask = left_padded([question.ids for question in questions], self.pad_token_id)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "answers": [question.answers for question in questions],
            "copies": 1,
            "groups": 1,
        }


class AnswerF1:
    """1 - F1 of the answer that the model writes (greedily) with the right answer that fits best; no gradient.

    Args:
        tokenizer: of the model.
        max_new_tokens: the most tokens of an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int):
        self._tokenizer, self._max_new_tokens = tokenizer, max_new_tokens

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """fp32 [B] losses of a batch of `QuestionCollator`."""
        ids, answers = batch["input_ids"], batch["answers"]
        written = write_after(
            model,
            self._tokenizer,
            ids,
            batch["attention_mask"],
            max_new_tokens=self._max_new_tokens,
            shares=batch["groups"],
        )
        losses = [answer_loss(*pair) for pair in zip(written, answers * batch["copies"], strict=True)]
        return torch.tensor(losses, dtype=torch.float32, device=ids.device)


def answer_loss(written: str, answers: tuple[str, ...]) -> float:
    """1 - the F1 of `written`."""
    return 1.0 - f1(written, answers)
