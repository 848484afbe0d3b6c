"""The metrics of the tasks, each for one sample; that of a data set is the mean.

F1 and exact match are SQuAD's (Rajpurkar et al., 2016): over words, without case, punctuation and articles, against the
answer that fits best. MeZO uses them for DROP too, instead of DROP's own rules for numbers and dates.
"""

import re
import string
from collections import Counter
from collections.abc import Collection, Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
NO_ANSWER = ("CANNOTANSWER", "no answer")


def accuracy(chosen: int, right: Collection[int]) -> float:
    """1 if the chosen candidate is one of the right ones, else 0."""
    return float(chosen in right)


def exact_match(answer: str, right: Sequence[str]) -> float:
    """1 if `answer` is, normalised, one of the right ones, else 0."""
    return float(normalised(answer) in map(normalised, right))


def f1(answer: str, right: Sequence[str]) -> float:
    """The largest F1 of the words of `answer` with those of a right one; the exact match if there is no answer."""
    if right[0] in NO_ANSWER:
        return exact_match(answer, right[:1])
    return max(_word_f1(normalised(answer).split(), normalised(other).split()) for other in right)


def normalised(text: str) -> str:
    """`text` in lower case, without punctuation, then without articles, with single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def _word_f1(answer: list[str], right: list[str]) -> float:
    shared = (Counter(answer) & Counter(right)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(answer), shared / len(right)
    return 2 * precision * recall / (precision + recall)


CHOICE_METRICS = {"accuracy": accuracy}
GENERATION_METRICS = {"f1": f1, "em": exact_match}
