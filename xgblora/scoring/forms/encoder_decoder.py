"""Encoders with a decoder (T5): the encoder reads the prompt once, and the decoder scores each answer after it.

An answer is what the decoder would write first, without the end of a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from xgblora.errors import InputError
from xgblora.scoring.collator import Collator
from xgblora.scoring.encoding import EncodedExample
from xgblora.scoring.forms.form import ModelForm
from xgblora.scoring.forms.padded import Batch, Padded, padded_on_the_right
from xgblora.scoring.option_rows import OptionRows, Rows
from xgblora.scoring.option_scorer import mean_log_probabilities
from xgblora.short_texts import plain_tokens
from xgblora.tasks.sample import Sample


@dataclass(frozen=True)
class PromptAndAnswers:
    """A sample in token ids.

    Attributes:
        prompt: what the encoder reads.
        answers: what the decoder reads, an example of its own.
    """

    prompt: tuple[int, ...]
    answers: EncodedExample

    def __len__(self) -> int:
        """Tokens of the prompt, or of the longest answer if that is longer."""
        return max(len(self.prompt), len(self.answers))

    @property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """What the decoder reads."""
        return self.answers.sequences

    @property
    def options(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Of the answers."""
        return self.answers.options

    @property
    def label(self) -> int:
        """Index of the right candidate."""
        return self.answers.label

    @property
    def ids(self) -> set[int]:
        """All token ids in it."""
        return {*self.prompt, *self.answers.ids}


def encode(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    model: nn.Module,
    *,
    max_length: int,
    only_right: bool = False,
) -> list[PromptAndAnswers]:
    """Encode samples; long prompts lose tokens at their beginning.

    Raises:
        InputError: an answer or a prompt is empty, or the model does not say what its decoder starts with.
    """
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise InputError(f"{type(model).__name__}: its configuration has no decoder_start_token_id")
    special = frozenset(tokenizer.all_special_ids)
    examples = []
    for sample in samples:
        texts = [sample.candidates[sample.label]] if only_right else sample.candidates
        answers = []
        for text in texts:
            answer = text[len(sample.prompt) :]
            ids = [token for token in tokenizer(text_target=answer)["input_ids"] if token not in special]
            if not ids:
                raise InputError(f"{sample.origin}: the option {answer!r} is empty after tokenization")
            answers.append(ids)
        prompt = tokenizer(sample.prompt)["input_ids"]
        if not prompt:
            raise InputError(f"{sample.origin}: the prompt is empty")
        label = 0 if only_right else sample.label
        examples.append(PromptAndAnswers(tuple(prompt[-max_length:]), _answers(start, answers, label)))
    return examples


def _answers(start: int, answers: Sequence[Sequence[int]], label: int) -> EncodedExample:
    """What the decoder reads: `start` and all tokens of an answer but the last; answers that agree there are one."""
    sequences: dict[tuple[int, ...], int] = {}
    rows: dict[tuple[int, int], int] = {}
    options = []
    for ids in answers:
        place = sequences.setdefault((start, *ids[:-1]), len(sequences))
        options.append(tuple((rows.setdefault((place, i), len(rows)), token) for i, token in enumerate(ids)))
    return EncodedExample(tuple(sequences), tuple(rows), tuple(options), label)


def collate(examples: list[PromptAndAnswers], pad_token_id: int) -> Batch:
    """`input_ids`, `attention_mask` [B, T], `decoder_input_ids` [B, S, D], and the rows of its S * D with all of them.

    `rows`, `option_rows`, `option_targets`, `option_mask` and `label` are as of `Collator`.
    """
    answers = [example.answers for example in examples]
    prompts, mask = padded_on_the_right([example.prompt for example in examples], pad_token_id)
    batch = Collator(pad_token_id)(answers)
    sequences = batch["input_ids"].shape[1]
    texts = [[*one.sequences, *one.sequences[:1] * (sequences - len(one.sequences))] for one in answers]
    read, _ = padded_on_the_right(list(chain(*texts)), pad_token_id)
    read = read.view(len(examples), sequences, -1)
    rows = [[sequence * read.shape[2] + index for sequence, index in one.rows] for one in answers]
    filled = [of_one + of_one[:1] * (batch["rows"].shape[1] - len(of_one)) for of_one in rows]
    kept = ("option_rows", "option_targets", "option_mask", "label", "copies", "groups")
    return {
        "input_ids": prompts,
        "attention_mask": mask,
        "decoder_input_ids": read,
        "rows": torch.tensor(filled),
        **{name: batch[name] for name in kept},
    }


def run(model: nn.Module, batch: Batch) -> Tensor:
    """fp32 [B, C] mean log-probabilities of the answers; a prompt is encoded once."""
    examples, sequences, length = batch["decoder_input_ids"].shape
    encoder = model.get_encoder()
    hidden = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    first = torch.arange(examples, device=hidden.device).unsqueeze(1) * (sequences * length)
    with OptionRows(model).only(Rows((batch["rows"] + first).view(-1))):
        logits = model(
            encoder_outputs=(hidden.repeat_interleave(sequences, dim=0),),
            attention_mask=batch["attention_mask"].repeat_interleave(sequences, dim=0),
            decoder_input_ids=batch["decoder_input_ids"].flatten(0, 1),
            use_cache=False,
        ).logits.float()
    return mean_log_probabilities(logits.view(examples, -1, logits.shape[-1]), batch)


def alone(model: nn.Module, example: PromptAndAnswers) -> Tensor:
    """fp32 [C] by a forward of each answer."""
    device = next(model.parameters()).device
    prompt = torch.tensor([example.prompt], device=device)
    logits = [
        model(input_ids=prompt, decoder_input_ids=torch.tensor([read], device=device), use_cache=False)
        .logits[0]
        .float()
        .log_softmax(dim=-1)
        for read in example.sequences
    ]
    places = example.answers.rows
    means = [[logits[places[row][0]][places[row][1], token] for row, token in option] for option in example.options]
    return torch.stack([torch.stack(of_one).mean() for of_one in means])


def trial(model: nn.Module, lengths: Sequence[int]) -> list[PromptAndAnswers]:
    """Texts of plain tokens, each with an answer of one token and one of three."""
    start = getattr(model.config, "decoder_start_token_id", None) or 0
    tokens = plain_tokens(model)
    return [
        PromptAndAnswers(
            tuple(islice(tokens, length)), _answers(start, [list(islice(tokens, count)) for count in (1, 3)], 0)
        )
        for length in lengths
    ]


def _names_encoder_decoder(architecture: str) -> bool:
    return (
        architecture in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()
        and architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    )


_PADDED = Padded(collate, run, alone, trial)
ENCODER_DECODER = ModelForm(
    "encoder and decoder",
    AutoModelForSeq2SeqLM,
    "SEQ_2_SEQ_LM",
    _names_encoder_decoder,
    encode,
    _PADDED.collator,
    _PADDED.scorer,
    _PADDED.log_probabilities,
)
