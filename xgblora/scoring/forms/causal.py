"""Causal language models: an answer is what follows the prompt, and its score what the model says of it there."""

from collections.abc import Sequence

from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from xgblora.scoring.collator import Collator
from xgblora.scoring.encoding import EncodedExample, encode_all
from xgblora.scoring.forms.form import ModelForm
from xgblora.scoring.likelihood import log_probabilities
from xgblora.scoring.option_scorer import OptionScorer
from xgblora.tasks.sample import Sample


def encode(
    samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, model: nn.Module, **options
) -> list[EncodedExample]:
    """As `scoring.encode_all`."""
    return encode_all(samples, tokenizer, **options)


CAUSAL = ModelForm(
    "causal language model",
    AutoModelForCausalLM,
    "CAUSAL_LM",
    frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()).__contains__,
    encode,
    Collator,
    OptionScorer,
    log_probabilities,
    writes=True,
)
