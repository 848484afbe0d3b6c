"""How a model may go on with prompts: tried once, as `xgblora.scoring.truth` tries how it may be scored.

Rows of several lengths are begun, two of them after one beginning, joined by others, gone on with and dropped, and the
logits of what follows are compared with those of the texts read whole and alone. A model that keeps something else than
the keys and values of all tokens is tried without shared beginnings and without rows that join.
"""

import inspect
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from xgblora.scoring.live_rows import Writer, joined
from xgblora.scoring.masked import fills_masks, without_cache
from xgblora.scoring.packing import reason_not_to_pack
from xgblora.scoring.position_limit import position_limit
from xgblora.scoring.truth import LONGEST, agree, can_be_tried, computes_in, lengths_near_limits
from xgblora.short_texts import MISFITS, plain_tokens, undisturbed
from xgblora.spelling import one_line

logger = logging.getLogger("xgblora")

# tokens that a trial goes on with
_FORCED = 2
_SHORTEST = _FORCED + 1


@dataclass(frozen=True)
class Ways:
    """How a model goes on with prompts, by what a trial has shown.

    Attributes:
        joins: whether beginnings are shared, and rows join others.
        spares: whether the last layer computes no more rows of a prompt than are read.
    """

    joins: bool
    spares: bool


@dataclass(frozen=True)
class _Tried:
    """What a trial with texts of up to `longest` tokens has shown; no ways: the model is right in none."""

    longest: int
    attention: str | None
    ways: Ways | None


# an evaluation and each step of an objective ask
_TRIED: WeakKeyDictionary[nn.Module, _Tried] = WeakKeyDictionary()


def ways_for(model: nn.Module, longest: int = 0) -> Ways | None:
    """How `model` goes on with texts of up to `longest` tokens, answers among them; None: its own way alone is right.

    0 asks for what is known: a model that reads several adapters, each for a share of the rows, cannot be tried.
    """
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    known = _TRIED.get(model)
    if known is None or known.attention != attention or known.longest < longest:
        if not longest or not can_be_tried(model) or fills_masks(model):
            return None
        known = _TRIED[model] = _Tried(longest, attention, _ways_of(model, longest))
    return known.ways


@torch.no_grad()
def _ways_of(model: nn.Module, longest: int) -> Ways | None:
    """The fastest ways that are right; None: none is, for a reason that the log says."""
    longest = max(longest, min(LONGEST, position_limit(model) or LONGEST), 2 * _SHORTEST)
    texts = _texts(model, longest)
    not_joining = reason_not_to_pack(model, list(inspect.signature(model.forward).parameters))
    reason = None
    try:
        with undisturbed(model):
            expected = _in_order([_alone(model, text) for text in texts])
            for joins, spares in itertools.product((False,) if not_joining else (True, False), (True, False)):
                ways = Ways(joins, spares)
                reason = _reason_against(model, ways, texts, expected)
                if reason is None:
                    return ways
    except MISFITS as error:
        reason = f"a text cannot be read alone ({one_line(error, limit=100)})"
    logger.info("Answers are written to prompts of one length at a time: %s", reason)
    return None


def _reason_against(model: nn.Module, ways: Ways, texts: list[list[int]], expected: Tensor) -> str | None:
    try:
        made = _in_batches(Writer(model, spares=ways.spares), texts, joins=ways.joins)
    except MISFITS as error:
        return f"they cannot be written together ({one_line(error, limit=100)})"
    return None if agree(made, expected, computes_in(model)) else "logits are others together"


def _texts(model: nn.Module, longest: int) -> list[list[int]]:
    """Token ids of a text of the longest length, of one that begins alike, and of others."""
    tokens = plain_tokens(model)
    long, *others = (list(itertools.islice(tokens, length)) for length in _lengths(model, longest))
    fork = [*long[: _shared(longest)], *itertools.islice(tokens, max(longest // 2, _SHORTEST))]
    return [long, fork[:longest], *others]


def _lengths(model: nn.Module, longest: int) -> Iterator[int]:
    near = (length for length in lengths_near_limits(model, longest) if length > _SHORTEST)
    return itertools.chain((longest, _SHORTEST, max(longest // 3, _SHORTEST)), near)


def _shared(longest: int) -> int:
    """The tokens that the first two texts begin with alike."""
    return longest // 4


def _alone(model: nn.Module, text: list[int]) -> Tensor:
    """[_FORCED + 1, V]: the last logits of a text."""
    ids = torch.tensor([text], device=model.get_input_embeddings().weight.device)
    return model(input_ids=ids, **without_cache(model)).logits[0, -_FORCED - 1 :]


def _in_batches(writer: Writer, texts: list[list[int]], *, joins: bool) -> Tensor:
    """The logits of the same places, of rows that are written together; the first row leaves before the last step."""
    begun, numbers = [text[:-_FORCED] for text in texts], range(len(texts))
    if joins:
        shared = _shared(len(texts[0]))
        beginning, _ = writer.begin([texts[0][:shared]], [0])
        live, logits = writer.begin_after(beginning, [0, 0], [ids[shared:] for ids in begun[:2]], numbers[:2])
        others, of_others = writer.begin(begun[2:], numbers[2:])
        live, made = joined([live, others]), [torch.cat([logits, of_others])]
    else:
        live, logits = writer.begin(begun, numbers)
        made = [logits]
    live, logits = writer.step(live, [text[-_FORCED] for text in texts])
    live = live.only(numbers[1:])
    made.append(logits)
    live, logits = writer.step(live.trimmed() if joins else live, [text[-1] for text in texts[1:]])
    return _centred(torch.cat([*made, logits]))


def _in_order(of_texts: list[Tensor]) -> Tensor:
    """What `_in_batches` should give."""
    *steps, last = torch.stack(of_texts).float().unbind(dim=1)
    return _centred(torch.cat([*steps, last[1:]]))


def _centred(logits: Tensor) -> Tensor:
    """Logits [..., V] less what is the same in all of them, which decides nothing."""
    return logits - logits.mean(dim=-1, keepdim=True)
