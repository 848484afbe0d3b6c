"""What a model says of texts read one at a time, whole and without padding: what every other way is held to.

Texts are packed, padded, share their beginnings and are spared the end of the last layer, because that is faster. No
documentation tells which architectures take it. So the scores of a few texts, as long as the data's longest, are made
both ways, and a way that gives others is left for the next slower one, with the reason in the log.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from xgblora.errors import InputError
from xgblora.scoring.encoding import EncodedExample
from xgblora.scoring.masked import fills_masks, without_cache
from xgblora.scoring.position_limit import position_limit
from xgblora.scoring.together import rules_for
from xgblora.short_texts import MISFITS, has_weights, plain_tokens, undisturbed
from xgblora.spelling import one_line

# of the scores, relative to the largest: what rounding does to a small batch. A token that sees its neighbours, or has
# a wrong position, moves the scores of a trained model by more.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}
# tokens of the longest text of a trial, at least
LONGEST = 32
# below this the last layer has too few rows to be spared any
SHORTEST = 16


@dataclass(frozen=True)
class Truth:
    """Texts, and their scores read one at a time.

    Attributes:
        examples: of several forms: long and short, of one sequence and of two with a shared beginning.
        expected: fp32, the mean log-probability of each of their candidates, one after the other.
        dtype: in which the model computes, see `computes_in`.
    """

    examples: tuple[EncodedExample, ...]
    expected: Tensor
    dtype: torch.dtype

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(map(len, self.examples))

    @torch.no_grad()
    def reason_against(self, model: nn.Module, scores: Callable[[], Tensor], *, others: str) -> str | None:
        """Why `scores` may not be used; None: they are the expected ones, up to rounding.

        Args:
            scores: makes the scores of all candidates in another way; a model may refuse that.
            others: what is said where they are others.
        """
        try:
            with undisturbed(model):
                made = scores()
        except MISFITS as error:
            return f"it cannot be called so ({one_line(error, limit=100)})"
        return None if agree(made, self.expected, self.dtype) else others

    def refusal(self, model: nn.Module, reason: str) -> InputError:
        """What is raised where no way is right; `reason` is that against the slowest of them."""
        return InputError(
            f"{type(model).__name__}: a text of up to {self.longest} tokens has other scores in a batch, or after "
            f"others, than alone ({reason}); give a smaller --max_length, or another model"
        )


@torch.no_grad()
def truth_of(model: nn.Module, longest: int | None = None) -> Truth:
    """The truth of `model` about texts of up to `longest` tokens, and of 32 at least where it has positions for them.

    Raises:
        InputError: the model cannot read such a text, or its logits depend on tokens that come later.
    """
    longest = max(longest or 0, min(LONGEST, position_limit(model) or LONGEST))
    examples = tuple(trial_examples(plain_tokens(model), longest, lengths_near_limits(model, longest)))
    embeddings = model.get_input_embeddings()
    kind, device, dtype = type(model).__name__, embeddings.weight.device, computes_in(model)
    try:
        with undisturbed(model):
            if not fills_masks(model):
                _refuse_looking_ahead(model, examples[0].sequences[0], device, dtype)
            expected = [score for example in examples for score in _plain_scores(model, example, device)]
    except InputError:
        raise
    except MISFITS as error:
        raise InputError(f"{kind} cannot read a text of {longest} tokens ({one_line(error, limit=200)})") from error
    return Truth(examples, torch.stack(expected), dtype)


@torch.no_grad()
def truth_of_choices(model: nn.Module) -> Truth:
    """The truth of `model`, which has one, about two texts whose candidates all stand at their last place."""
    tokens, device = plain_tokens(model), model.get_input_embeddings().weight.device
    longest = min(LONGEST, position_limit(model) or LONGEST)
    examples = tuple(_choice(tokens, max(length, 1)) for length in (longest // 2, longest // 4))
    with undisturbed(model):
        expected = [score for example in examples for score in _plain_scores(model, example, device)]
    return Truth(examples, torch.stack(expected), computes_in(model))


def computes_in(model: nn.Module) -> torch.dtype:
    """The dtype whose rounding the scores of `model` have.

    Kernels of quantised layers round inputs to 8 or 16 bits, and differently by the shape of a batch, whatever the
    dtype of the model is.
    """
    return torch.bfloat16 if getattr(model, "is_quantized", False) else model.get_input_embeddings().weight.dtype


def can_be_tried(model: nn.Module) -> bool:
    """Whether the model reads token ids and has weights."""
    return plain_tokens(model) is not None and has_weights(model)


def agree(scores: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether scores that a model of `dtype` gave in another way are the same up to rounding.

    Of a model that gives no finite numbers nothing can be told: then they are.
    """
    if not expected.isfinite().all():
        return True
    return bool((scores - expected).abs().max() <= TOLERANCES.get(dtype, 2e-2) * expected.abs().max())


def trial_examples(tokens: Iterator[int], longest: int, more: tuple[int, ...] = ()) -> list[EncodedExample]:
    """Examples of every form, of at most `longest` tokens, and one of each of the lengths `more`.

    A candidate is one token, at several places of its text: what goes wrong may do so far from the beginning.
    """
    longest = max(longest, 4)
    examples = [
        _whole(tokens, longest),
        _forked(tokens, max(3 * longest // 4, 3)),
        _forked(tokens, max(longest // 4, 3)),
    ]
    return [*examples, *(_whole(tokens, length) for length in (3, *more))]


def lengths_near_limits(model: nn.Module, longest: int) -> tuple[int, ...]:
    """Two lengths beyond each number of positions that the configuration states, so that a change there shows."""
    limits = [limit for rule in rules_for(model, longest)[1:-1] for limit in rule.limits]
    return tuple({length for limit in limits for length in (limit, limit + 1, (limit + 1 + longest) // 2)})


def _whole(tokens: Iterator[int], length: int) -> EncodedExample:
    ids = tuple(islice(tokens, length))
    places = sorted({length // 4, length // 2, length - 1})
    options = tuple(((row, token),) for row, token in enumerate(islice(tokens, len(places))))
    return EncodedExample((ids,), tuple((0, place) for place in places), options, 0)


def _choice(tokens: Iterator[int], length: int) -> EncodedExample:
    """Three candidates after the last token."""
    ids = tuple(islice(tokens, length))
    options = tuple(((0, token),) for token in islice(tokens, 3))
    return EncodedExample((ids,), ((0, length - 1),), options, 0)


def _forked(tokens: Iterator[int], length: int) -> EncodedExample:
    """Two sequences of one length that begin alike; each predicts one token after their last and one before."""
    shared, ends = tuple(islice(tokens, length - 2)), [tuple(islice(tokens, 2)) for _ in range(2)]
    rows = ((0, length - 3), (0, length - 1), (1, length - 2), (1, length - 1))
    options = tuple(((row, token),) for row, token in enumerate(islice(tokens, len(rows))))
    return EncodedExample(tuple((*shared, *end) for end in ends), rows, options, 0)


def _plain_logits(model: nn.Module, ids: tuple[int, ...], device: torch.device) -> Tensor:
    """fp32 [T, V] of one text alone."""
    return model(input_ids=torch.tensor([ids], device=device), **without_cache(model)).logits[0].float()


def _plain_scores(model: nn.Module, example: EncodedExample, device: torch.device) -> list[Tensor]:
    logits = [_plain_logits(model, sequence, device).log_softmax(dim=-1) for sequence in example.sequences]
    return [
        torch.stack([logits[example.rows[row][0]][example.rows[row][1], token] for row, token in option]).mean()
        for option in example.options
    ]


def _refuse_looking_ahead(model: nn.Module, ids: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> None:
    half = len(ids) // 2
    logits = _plain_logits(model, ids, device)
    changed = _plain_logits(model, (*ids[:half], *reversed(ids[half:])), device)
    if not agree(changed[:half], logits[:half], dtype):
        raise InputError(
            f"{type(model).__name__} looks ahead: what it says of a token depends on those that come later, so it has "
            "no probability for an answer after a prompt; a causal language model has"
        )
