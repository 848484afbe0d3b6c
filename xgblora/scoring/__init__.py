"""Scoring: a language model over encoded texts: candidates' log-probabilities, and answers that it writes."""

from xgblora.eval_mode import in_eval_mode
from xgblora.scoring.collator import Collator
from xgblora.scoring.encoding import EncodedExample, encode, encode_all
from xgblora.scoring.generation import generate_answers
from xgblora.scoring.likelihood import log_probabilities
from xgblora.scoring.option_scorer import OptionScorer

__all__ = [
    "Collator",
    "EncodedExample",
    "OptionScorer",
    "encode",
    "encode_all",
    "generate_answers",
    "in_eval_mode",
    "log_probabilities",
]
