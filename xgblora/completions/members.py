"""What the members of a population write, all of them in one batch over one read of the weights.

The rows of a batch are members x prompts x completions. Each member's adapter is a row of `live`, and each row of the
batch says whose it reads (`group_of_row`), so rows that have ended leave the batch and those left close up. A member's
cache of keys and values is its own, for its adapters made it; what its rows have in common is run once: the tokens that
all prompts of a batch begin with, and each prompt for all of its completions.

Prompts are padded on the left, with a mask and with positions that count real tokens, as `generate` of transformers
has it.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase, StopStringCriteria

from xgblora.adapters import AdapterSet
from xgblora.completions.sampling import Sampling, next_tokens, uniforms
from xgblora.errors import InputError
from xgblora.eval_mode import in_eval_mode
from xgblora.scoring.batches import batches_by_length
from xgblora.scoring.generation import check_room, left_padded, prompt_ids
from xgblora.scoring.live_rows import keep_rows
from xgblora.scoring.packing import common_length, keeps_all_tokens
from xgblora.scoring.position_limit import position_limit
from xgblora.scoring.vocabulary import end_ids, padding_id, rows_of_embeddings

# Tokens of a batch, those to be written among them. A cache of 65,536 tokens takes 2.4 GB in a model of the size of
# OPT-125m in bf16, and 84 MB in stories260K.
TOKENS = 1 << 16
# the fewest tokens that are worth a forward of their own
_SHARED = 8


@dataclass(frozen=True)
class Completion:
    """A text that a member wrote.

    Attributes:
        text: without special tokens, up to the stop string if there was one.
        ids: all tokens that were written, the one that ended the text among them.
        truncated: whether it had not ended when it was as long as it may get.
    """

    text: str
    ids: tuple[int, ...]
    truncated: bool


@torch.no_grad()
def generate_for_members(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    adapters: AdapterSet | None,
    prompts: Sequence[str | Sequence[int]],
    *,
    members: int | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    max_length: int | None = None,
    tokens: int | None = None,
) -> list[list[list[Completion]]]:
    """The completions of each prompt by each member: `result[member][prompt][completion]`.

    The numbers that tokens are drawn with depend on (seed, prompt, completion, position) alone, and the same call gives
    the same texts bit for bit. In a batch of other rows the same row's logits may be rounded otherwise (matrix products
    differ with their size), which now and then tips a token.

    Args:
        model: a causal language model with a cache of keys and values.
        tokenizer: its tokenizer.
        adapters: of `model`; `adapters.arena.live` holds a row a member. When this returns, its layers read `master`.
        prompts: texts, or token ids where they are known (chat templates). Long ones lose tokens at their beginning.
        members: P, those of the rows 0 .. P - 1 of `live`; None: one member, the model as its layers stand.
        sampling: how tokens are chosen and when a text ends.
        seed: 64 bits.
        numbers: what prompts are called in the noise, such as the numbers of their rows of data; None: 0, 1, ...
        max_length: the most tokens of prompt and completion; None: what the model says it can read.
        tokens: the most tokens of a batch, completions among them; one prompt of all members is the least.

    Raises:
        InputError: there is no room for a prompt, `live` has no row for a member, or the model keeps something else
            than the keys and values of all tokens.
    """
    max_length = max_length or position_limit(model) or 1 << 30
    check_room(max_length, sampling.max_new_tokens)
    if members is not None and (adapters is None or adapters.arena.live is None or len(adapters.arena.live) < members):
        raise InputError(f"members={members}: `adapters.arena.live` must have a row for each; call `allocate_live`")
    room = max_length - sampling.max_new_tokens
    texts = [prompt_ids(tokenizer, one, room) if isinstance(one, str) else list(one)[-room:] for one in prompts]
    numbers = list(range(len(texts))) if numbers is None else list(numbers)
    writer = _Writer(model, tokenizer, adapters, members, sampling)
    with in_eval_mode(model):
        try:
            return _in_batches(writer, texts, numbers, seed, tokens or TOKENS)
        finally:
            if members is not None:
                adapters.arena.read_master()


def _in_batches(
    writer: "_Writer", texts: list[list[int]], numbers: list[int], seed: int, tokens: int
) -> list[list[list[Completion]]]:
    """What `writer` writes after `texts`, by member, text and completion."""
    sampling, members = writer.sampling, writer.members or 1
    result: list[list[list[Completion]]] = [[[] for _ in texts] for _ in range(members)]
    batches = batches_by_length(
        range(len(texts)),
        lambda place: len(texts[place]),
        tokens=max(1, tokens // (members * sampling.completions)),
        extra=sampling.max_new_tokens,
    )
    for places in batches:
        named = [numbers[place] for place in places]
        noise = uniforms(seed, named, sampling.completions, sampling.max_new_tokens, writer.device)
        written = iter(writer.write([texts[place] for place in places], noise))
        for of_member in result:
            for place in places:
                of_member[place] = [next(written) for _ in range(sampling.completions)]
    return result


@dataclass
class _Rows:
    """The rows of a batch that still write.

    Attributes:
        numbers: int64 [R], their places among all rows of the batch: member, then prompt, then completion.
        member: int32 [R].
        length: int64 [R], tokens so far.
        mask: int64 [R, L], 0 for padding in the cache.
        cache: keys and values of L positions.
        logits: [R, V], what the next token is chosen from.
    """

    numbers: Tensor
    member: Tensor
    length: Tensor
    mask: Tensor
    cache: DynamicCache
    logits: Tensor

    def keep(self, index: Tensor) -> None:
        """Keep the rows `index` alone."""
        for name in ("numbers", "member", "length", "mask"):
            setattr(self, name, getattr(self, name)[index])
        keep_rows(self.cache, index)


class _Writer:
    """Writes batches; arguments as of `generate_for_members`."""

    def __init__(self, model, tokenizer, adapters, members: int | None, sampling: Sampling):
        if not keeps_all_tokens(model.config):
            raise InputError(
                f"{type(model).__name__} keeps something else than the keys and values of all tokens (a window, a "
                "state): several members cannot write in one batch"
            )
        self.device = next(model.parameters()).device
        self._model, self._tokenizer, self.sampling = model, tokenizer, sampling
        self._adapters, self.members = adapters, members
        self._pad = padding_id(tokenizer, rows_of_embeddings(model))
        self._ends = torch.tensor(sorted(end_ids(tokenizer, model)), dtype=torch.int64, device=self.device)
        self._stops = StopStringCriteria(tokenizer, list(sampling.stop)) if sampling.stop else None
        arguments = inspect.signature(model.forward).parameters
        self._takes = {name for name in ("position_ids", "logits_to_keep") if name in arguments}

    def write(self, texts: list[list[int]], noise: Tensor) -> list[Completion]:
        """What is written after `texts`, by member, text and completion; `noise` is [texts, completions, positions]."""
        rows = self._read(texts)
        count, positions = len(rows.numbers), self.sampling.max_new_tokens
        noise = noise.view(-1, positions).repeat(self.members or 1, 1)
        written = torch.full((count, positions), self._pad, device=self.device)
        lengths = torch.full((count,), positions, device=self.device)
        has_ended = torch.zeros(count, dtype=torch.bool, device=self.device)
        for position in range(positions):
            token = next_tokens(rows.logits, self.sampling, noise[rows.numbers, position])
            written[rows.numbers, position] = token
            ended = torch.isin(token, self._ends)
            if self._stops is not None:
                ended |= self._stops(written[rows.numbers, : position + 1], None)
            if ended.any():
                of_ended = rows.numbers[ended]
                lengths[of_ended], has_ended[of_ended] = position + 1, True
                going = (~ended).nonzero().squeeze(1)
                token = token[going]
                rows.keep(going)
            if position + 1 == positions or not len(token):
                break
            self._go_on(rows, token.unsqueeze(1), torch.ones_like(token).unsqueeze(1))
        ids = [row[:length] for row, length in zip(written.tolist(), lengths.tolist(), strict=True)]
        return [self._completion(of_row, ended) for of_row, ended in zip(ids, has_ended.tolist(), strict=True)]

    def _completion(self, ids: list[int], has_ended: bool) -> Completion:
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        ends = [text.index(stop) for stop in self.sampling.stop if stop in text]
        return Completion(text[: min(ends)] if ends else text, tuple(ids), not (has_ended or ends))

    def _read(self, texts: list[list[int]]) -> _Rows:
        """The rows of a batch, their prompts read: what all begin with once a member, each prompt once a member."""
        members = torch.arange(self.members or 1, dtype=torch.int32, device=self.device)
        shared = min(common_length(min(texts), max(texts)), min(map(len, texts)) - 1)
        shared = shared if len(texts) > 1 and shared >= _SHARED else 0
        zeros = torch.zeros(len(members), dtype=torch.int64, device=self.device)
        rows = _Rows(zeros, members, zeros, zeros.unsqueeze(1)[:, :0], DynamicCache(config=self._model.config), zeros)
        if shared:
            ids = torch.tensor([texts[0][:shared]], device=self.device).expand(len(members), -1)
            self._go_on(rows, ids, torch.ones_like(ids))
        self._repeat(rows, len(texts), in_cache=bool(shared))
        ids, mask = (part.to(self.device) for part in left_padded([text[shared:] for text in texts], self._pad))
        self._go_on(rows, ids.repeat(len(members), 1), mask.repeat(len(members), 1))
        self._repeat(rows, self.sampling.completions, in_cache=True)
        rows.numbers = torch.arange(len(rows.member), device=self.device)
        return rows

    def _repeat(self, rows: _Rows, times: int, *, in_cache: bool) -> None:
        """Each row `times` times, one beside the other."""
        if times == 1:
            return
        for name in ("member", "length", "mask", "logits"):
            setattr(rows, name, getattr(rows, name).repeat_interleave(times, dim=0))
        if in_cache:
            rows.cache.batch_repeat_interleave(times)

    def _go_on(self, rows: _Rows, ids: Tensor, mask: Tensor) -> None:
        """Run `ids` [R, T] after what the cache holds; `mask` [R, T] is 0 for padding."""
        positions = rows.length.unsqueeze(1) + (mask.cumsum(dim=1) - 1).clamp_(min=0)
        rows.length, rows.mask = rows.length + mask.sum(dim=1), torch.cat((rows.mask, mask), dim=1)
        if self.members is not None:
            self._adapters.arena.read_live(0, self.members, rows.member if self.members > 1 else None)
        given = {"position_ids": positions, "logits_to_keep": 1}
        output = self._model(
            input_ids=ids,
            attention_mask=rows.mask,
            past_key_values=rows.cache,
            use_cache=True,
            **{name: value for name, value in given.items() if name in self._takes},
        )
        rows.logits = output.logits[:, -1]
