"""Masked language models: an answer is masks in its text (`xgblora.scoring.masked`)."""

from collections.abc import Sequence

from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from xgblora.scoring.collator import Collator
from xgblora.scoring.encoding import EncodedExample
from xgblora.scoring.forms.form import ModelForm
from xgblora.scoring.likelihood import log_probabilities
from xgblora.scoring.masked import encode_with_masks, mask_token, names_masked
from xgblora.scoring.option_scorer import OptionScorer
from xgblora.tasks.sample import Sample


def encode(
    samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, model: nn.Module, **options
) -> list[EncodedExample]:
    """As `scoring.masked.encode_with_masks`."""
    return encode_with_masks(samples, tokenizer, mask_token(model, tokenizer), **options)


MASKED = ModelForm(
    "masked language model",
    AutoModelForMaskedLM,
    # PEFT has no task for it
    None,
    names_masked,
    encode,
    Collator,
    OptionScorer,
    log_probabilities,
)
