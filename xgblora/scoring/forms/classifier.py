"""Sequence classification heads: an answer is a label, and its score the log-probability that the head gives it.

The model reads the prompt alone. The candidates, which are the same for all samples of a task, are its labels in their
order.
"""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from xgblora.errors import InputError
from xgblora.scoring.encoding import EncodedExample
from xgblora.scoring.forms.form import ModelForm
from xgblora.scoring.forms.padded import Batch, Padded, padded_on_the_right
from xgblora.short_texts import plain_tokens
from xgblora.tasks.sample import Sample


def labels_of(samples: Sequence[Sample]) -> tuple[str, ...]:
    """The answers that a head chooses from.

    Raises:
        InputError: two samples have others.
    """
    first, labels = samples[0], _answers(samples[0])
    for sample in samples:
        if _answers(sample) != labels:
            raise InputError(
                f"head=True: the answers of {sample.origin} are not those of {first.origin}, so they are no labels of "
                "a head; leave it out"
            )
    if len(labels) < 2:
        raise InputError(f"head=True: {first.origin} has one answer only; a head chooses between labels; leave it out")
    return labels


def _answers(sample: Sample) -> tuple[str, ...]:
    return tuple(text[len(sample.prompt) :].strip() for text in sample.candidates)


def is_of_head(model: nn.Module, name: str) -> bool:
    """Whether the module or parameter called `name` is of the head: outside of the body, or what pools its output."""
    return not name.startswith(f"{model.base_model_prefix}.") or "pooler" in name.split(".")


def encode(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    model: nn.Module,
    *,
    max_length: int,
    only_right: bool = False,
) -> list[EncodedExample]:
    """The prompts of samples, with a label a candidate. Long ones lose tokens after the first, if that is special.

    Args:
        only_right: of no meaning here: a head gives all labels at once.

    Raises:
        InputError: a prompt is empty, or the model has another number of labels.
    """
    special = frozenset(tokenizer.all_special_ids)
    examples = []
    for sample in samples:
        if len(sample.candidates) != model.config.num_labels:
            raise InputError(
                f"{sample.origin}: has {len(sample.candidates)} answers, and the head {model.config.num_labels} labels"
            )
        ids = tokenizer(sample.prompt)["input_ids"]
        if not ids:
            raise InputError(f"{sample.origin}: the prompt is empty")
        kept, cut = int(ids[0] in special), max(0, len(ids) - max_length)
        examples.append(_example((*ids[:kept], *ids[kept + cut :]), len(sample.candidates), sample.label))
    return examples


def _example(ids: Sequence[int], labels: int, label: int) -> EncodedExample:
    options = tuple(((0, number),) for number in range(labels))
    return EncodedExample((tuple(ids),), ((0, len(ids) - 1),), options, label)


def collate(examples: list[EncodedExample], pad_token_id: int) -> Batch:
    """`input_ids`, `attention_mask` [B, T] and `label` [B]."""
    ids, mask = padded_on_the_right([example.sequences[0] for example in examples], pad_token_id)
    labels = torch.tensor([example.label for example in examples])
    return {"input_ids": ids, "attention_mask": mask, "label": labels, "copies": 1, "groups": 1}


def run(model: nn.Module, batch: Batch) -> Tensor:
    """fp32 [B, C] log-probabilities of the labels."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits.float().log_softmax(dim=-1)


def alone(model: nn.Module, example: EncodedExample) -> Tensor:
    """fp32 [C] by a forward of one text."""
    ids = torch.tensor([example.sequences[0]], device=next(model.parameters()).device)
    return model(input_ids=ids).logits[0].float().log_softmax(dim=-1)


def trial(model: nn.Module, lengths: Sequence[int]) -> list[EncodedExample]:
    """Texts of plain tokens."""
    tokens, labels = plain_tokens(model), model.config.num_labels
    return [_example(tuple(islice(tokens, length)), labels, 0) for length in lengths]


_PADDED = Padded(collate, run, alone, trial)
CLASSIFIER = ModelForm(
    "sequence classifier",
    AutoModelForSequenceClassification,
    "SEQ_CLS",
    frozenset(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()).__contains__,
    encode,
    _PADDED.collator,
    _PADDED.scorer,
    _PADDED.log_probabilities,
)
