"""Log-probabilities of the candidates of a batch.

Batches run packed, without padding, on models that give the right scores so (`xgblora.scoring.truth`). Those that do
not pad them on the left, with a mask and positions; on the right, where a causal model does not see it; or run texts of
one length at a time. What does not predict an option token is spared the end of the model
(`xgblora.scoring.option_rows`), and what is the same in all copies of a batch its beginning (`xgblora.scoring.trunk`).
"""

import inspect
import logging
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from xgblora.errors import InputError
from xgblora.scoring.collator import Collator
from xgblora.scoring.masked import fills_masks, without_cache
from xgblora.scoring.option_rows import OptionRows, Rows
from xgblora.scoring.packing import for_attention, keeps_apart, power_of_two, reason_not_to_pack
from xgblora.scoring.together import ALL, Together, rules_for
from xgblora.scoring.trunk import Trunk
from xgblora.scoring.truth import SHORTEST, Truth, can_be_tried, truth_of, truth_of_choices

logger = logging.getLogger("xgblora")


class OptionScorer:
    """Scores the candidates of batches made by `Collator` with a causal language model.

    Args:
        model: a model with `get_output_embeddings()`; it has hooks within `scores` and none outside.
        longest: the tokens of the longest text that it will score; None: a few.

    Attributes:
        packs: whether batches that have a `grid` run packed, as long as one adapter reads each copy of a batch: in the
            grid its examples stand side by side.
        reasons_not_to_skip: what trials of skipping blocks have shown, see `Trunk`; kept in checkpoints.

    Raises:
        InputError: the model has no output embeddings, looks ahead, or gives a text in a batch other scores than alone.
    """

    WAYS = ("reasons_not_to_skip",)  # how forwards are run: what a checkpoint keeps of it

    def __init__(self, model: nn.Module, longest: int | None = None):
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if head is None:
            raise InputError(f"{type(model).__name__} has no output embeddings: it is no language model")
        self._arguments = list(inspect.signature(model.forward).parameters)
        self._takes_positions = "position_ids" in self._arguments
        self._rows, self._trunk = OptionRows(model), Trunk(model)
        self.packs = False
        # whether the logits of a few tokens a row can be had without those of the whole vocabulary
        self._chooses = False
        # tokens of the longest text that was tried; of a model without weights none can be
        self._tried = math.inf
        # None: padded on the left, with a mask
        self._together: Together | None = None
        if not can_be_tried(model):
            logger.info("Batches are padded, not packed: the model has no weights yet")
            return
        self._try(model, longest)
        self._try_to_choose(model)

    @property
    def reasons_not_to_skip(self) -> dict[str, str | None]:
        return self._trunk.reasons

    @reasons_not_to_skip.setter
    def reasons_not_to_skip(self, reasons: dict[str, str | None]) -> None:
        self._trunk.reasons = dict(reasons)

    def scores(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Mean log-probability of the option tokens of each candidate: fp32 [B, C], -inf for padding candidates."""
        return mean_log_probabilities(self._logits(model, batch), batch)

    def relative_scores(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """`scores` less a number of each example: their order and their softmax are the same.

        Where each candidate of the batch is one token, and all of an example stand at one place, the words that are no
        candidates cancel, and are not computed.
        """
        tokens = batch["option_targets"]
        at_one_place = batch["rows"].shape[1] == 1 and tokens.shape[2] == 1
        if not (self._chooses and at_one_place and self._rows.few(tokens)):
            return self.scores(model, batch)
        logits = self._logits(model, batch, tokens.squeeze(2)).squeeze(1)
        return logits.masked_fill(batch["option_mask"].squeeze(2) == 0, float("-inf"))

    def _logits(self, model: nn.Module, batch: dict[str, Tensor], tokens: Tensor | None = None) -> Tensor:
        """fp32 [B, R, V], of the rows that predict option tokens; with `tokens` [B, C] theirs alone, [B, R, C]."""
        self._try_longer(model, batch)
        packed = self.packs and "grid" in batch and batch["groups"] == batch["copies"]
        if not packed and self._together is not None:
            logits = self._logits_on_the_right(model, batch, tokens)
        else:
            arguments, rows = self._inputs(model, batch, packed)
            with self._below_skipped(model, batch, packed), self._rows.only(replace(rows, tokens=tokens)):
                logits = model(**arguments, use_cache=False).logits.float()
        return logits.view(len(batch["label"]), -1, logits.shape[-1])

    def states(self, model: nn.Module, batch: dict[str, Tensor], first: str) -> Tensor:
        """The hidden states of a batch that the block called `first` is given: [B, S, T, D], zero for padding."""
        self._try_longer(model, batch)
        packed = self.packs and "grid" in batch
        hidden = self._run_below(model, batch, packed, first)
        if not packed:
            there = batch["attention_mask"].bool().unsqueeze(-1)
            return hidden.view(*batch["input_ids"].shape, -1).masked_fill(~there, 0)
        # what has no cell of its own stands in the row after the last
        of_cells = pad(hidden.flatten(0, 1), (0, 0, 0, 1))
        return of_cells.index_select(0, batch["cells"].flatten()).view(*batch["cells"].shape, -1)

    def can_skip(self, model: nn.Module, first: str, groups: int = 1) -> bool:
        """Whether forwards may begin at the block called `first`, see `Trunk.fits`; `groups` adapters are read.

        Those that pad on the right may not, unless they are packed: their texts stand elsewhere.
        """
        if not self.packs and self._together is not None:
            return self._trunk.refuses(first, "batches are padded on the right")
        return self._trunk.fits(model, first, partial(_apart if self.packs else _plain, model), groups)

    def _try_longer(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        if batch["input_ids"].shape[-1] > self._tried and batch.get("groups", 1) == 1:
            # nobody said that texts would be so long
            self._try(model, int(batch["attention_mask"].sum(dim=-1).max()))

    def _try(self, model: nn.Module, longest: int | None) -> None:
        """Choose how batches of texts of up to `longest` tokens are run."""
        truth = truth_of(model, longest)
        self._tried = power_of_two(truth.longest)
        self._choose_padding(model, truth)
        reason = "it reads both ways" if fills_masks(model) else reason_not_to_pack(model, self._arguments)
        reason = reason or self._reason_not_to_pack(model, truth)
        if reason:
            logger.info("Batches are padded, not packed: %s", reason)

    def _below_skipped(self, model: nn.Module, batch: dict[str, Tensor], packed: bool) -> AbstractContextManager[None]:
        """Within the block a forward skips what is known of the batch, or the same in all its copies and run here."""
        first, copies, known = batch.get("trunk", ""), batch.get("copies", 1), batch.get("states_at", "")
        if copies > 1 and first not in ("", known) and self.can_skip(model, first, batch["groups"]):
            one = {name: value[: len(value) // copies] for name, value in batch.items() if isinstance(value, Tensor)}
            hidden = self._run_below(model, {**batch, **one, "copies": 1, "groups": 1}, packed, first)
            return self._trunk.skipped(first, hidden.repeat(copies, 1, 1))
        return self._known_skipped(batch, packed)

    def _known_skipped(self, batch: dict[str, Tensor], packed: bool) -> AbstractContextManager[None]:
        """Within the block a forward begins at the block whose `states` are in the batch, if there are any."""
        if "states" not in batch:
            return nullcontext()
        states = batch["states"]
        return self._trunk.skipped(batch["states_at"], _in_grid(states, batch) if packed else states.flatten(0, 1))

    def _run_below(self, model: nn.Module, batch: dict[str, Tensor], packed: bool, first: str) -> Tensor:
        """The hidden states that the block called `first` is given, as the model has them; no other is run."""
        arguments, rows = self._inputs(model, batch, packed)
        # some row must go through the vocabulary
        with self._known_skipped(batch, packed), self._rows.only(Rows(rows.rows[:1])):
            return self._trunk.states(lambda: model(**arguments, use_cache=False), first)

    def _inputs(self, model: nn.Module, batch: dict[str, Tensor], packed: bool) -> tuple[dict[str, Tensor], Rows]:
        """What the model takes, and the rows that predict option tokens."""
        return _packed(model, batch) if packed else self._padded(model, batch)

    def _padded(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Rows]:
        """What the model takes, and the rows of its B * S * T that predict option tokens."""
        examples, sequences, length = batch["input_ids"].shape
        first = torch.arange(examples, device=batch["rows"].device).unsqueeze(1) * (sequences * length)
        mask = batch["attention_mask"].view(-1, length)
        arguments = {"input_ids": batch["input_ids"].view(-1, length), "attention_mask": mask}
        if self._takes_positions:
            arguments["position_ids"] = _positions(mask)
        if self.packs and _is_on_gpu(mask):
            # given this one, transformers looks whether there is padding at all, and the host waits for the answer
            arguments["attention_mask"] = for_attention(model, keeps_apart(mask, torch.zeros_like(mask)))
        return arguments, Rows((batch["rows"] + first).view(-1))

    def _logits_on_the_right(self, model: nn.Module, batch: dict[str, Tensor], tokens: Tensor | None) -> Tensor:
        """fp32 [1, B * R, V] or [1, B * R, C], of forwards over texts that may stand together, without positions.

        A mask is given to a model that reads both ways; one that does not sees no padding behind its texts.
        """
        ids, mask = batch["input_ids"].flatten(0, 1), batch["attention_mask"].flatten(0, 1)
        count, width = ids.shape
        lengths = mask.sum(dim=1)
        places = torch.arange(width, device=ids.device) + (width - lengths).unsqueeze(1)
        # what stands before a text comes round behind it
        ids = ids.gather(1, places % width)
        first = torch.arange(len(batch["rows"]), device=ids.device).unsqueeze(1) * (batch["input_ids"].shape[1] * width)
        wanted = (batch["rows"] + first).view(-1)
        text, place = wanted // width, wanted % width
        place = place - (width - lengths[text])
        mask = (places < width).long() if fills_masks(model) else None

        def run(members: Tensor | slice, longest: int) -> Tensor:
            arguments = without_cache(model) if mask is None else {"attention_mask": mask[members, :longest]}
            return model(input_ids=ids[members, :longest], **arguments).logits.float()

        if self._together is ALL:
            with self._rows.only(Rows(text * width + place, tokens=tokens)):
                return run(slice(None), width)
        logits: list[Tensor] = []
        order: list[Tensor] = []
        of_texts = lengths.tolist()
        for members in self._together.groups(of_texts):
            longest, members = max(of_texts[member] for member in members), ids.new_tensor(members)
            number = ids.new_full((count,), -1).index_copy(0, members, torch.arange(len(members), device=ids.device))
            (rows,) = (number[text] >= 0).nonzero(as_tuple=True)
            if len(rows):
                of_rows = None if tokens is None else tokens[rows]
                with self._rows.only(Rows(number[text[rows]] * longest + place[rows], tokens=of_rows)):
                    logits.append(run(members, longest)[0])
                order.append(rows)
        return torch.cat(logits)[torch.cat(order).argsort()].unsqueeze(0)

    def _choose_padding(self, model: nn.Module, truth: Truth) -> None:
        """The fastest way to run batches that are not packed.

        Raises:
            InputError: none gives the right scores.
        """
        reasons = []
        # the positions of a masked language model begin where its tokens do
        first = () if fills_masks(model) else (None,)
        for together in (*first, *rules_for(model, truth.longest)):
            self._together = together
            reason = truth.reason_against(model, lambda: self._scores_of(model, truth), others="scores are others then")
            if reason is None:
                break
            reasons.append(f"{'with a mask and positions' if together is None else together.name}: {reason}")
        else:
            raise truth.refusal(model, "; ".join(reasons))
        if reasons:
            logger.info("Batches are padded on the right, %s in a forward (%s)", together.name, "; ".join(reasons))

    def _reason_not_to_pack(self, model: nn.Module, truth: Truth) -> str | None:
        """Why batches are not packed; None: they are, and the last layer is spared what it can be."""

        def trial() -> str | None:
            return truth.reason_against(
                model, lambda: self._scores_of(model, truth), others="scores are others with positions and a mask"
            )

        self.packs = True
        reason = self._rows.spare(model, trial) if truth.longest >= SHORTEST else "texts are short"
        if reason is None:
            return None
        not_packed = trial()
        self.packs = not_packed is None
        if self.packs:
            logger.info("The last layer computes all positions: %s", reason)
        return not_packed

    def _try_to_choose(self, model: nn.Module) -> None:
        """Compute of choices among tokens no other words, if that gives scores that differ by the same amounts."""
        self._chooses = self._rows.knows_words()
        if not self._chooses:
            return
        truth = truth_of_choices(model)
        batch, expected = _batch_of(truth), truth.expected.view(len(truth.examples), -1)

        def scores() -> Tensor:
            made = self.relative_scores(model, batch)
            return (made + (expected - made).mean(dim=1, keepdim=True)).flatten()

        reason = truth.reason_against(model, scores, others="the scores of candidates differ by other amounts then")
        if reason:
            self._chooses = False
            logger.info("The whole vocabulary is computed: %s", reason)

    def _scores_of(self, model: nn.Module, truth: Truth) -> Tensor:
        """The scores of all candidates of the trial, as batches are run now."""
        batch = _batch_of(truth)
        return self.scores(model, batch)[batch["option_mask"].any(dim=-1)]


def _batch_of(truth: Truth) -> dict[str, Tensor]:
    """The examples of a trial on the model's device."""
    return {
        name: value.to(truth.expected.device) if isinstance(value, Tensor) else value
        for name, value in Collator(0)(list(truth.examples)).items()
    }


def _packed(model: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Rows]:
    """What the model takes, and the rows of its R * L that predict option tokens; each copy of a batch has a grid."""
    copies, (rows, length) = batch["copies"], batch["grid"]
    cells = batch["cells"].unflatten(0, (copies, -1))
    _, examples, sequences, tokens = cells.shape
    positions = _positions(batch["attention_mask"])
    # numbered from 1, so that zeros are what is left of the grid
    numbers = torch.arange(1, max(examples, sequences) + 1, device=cells.device)
    branches = numbers[:sequences, None].expand(len(positions), sequences, tokens)
    branches = branches.masked_fill(positions < batch["shared"].view(-1, 1, 1), 0)
    example_of = numbers[:examples, None, None].expand(cells.shape)

    def grid(values: Tensor) -> Tensor:
        # one cell more takes all padding
        filled = values.new_zeros(copies, rows * length + 1)
        return filled.scatter_(1, cells.flatten(1), values.reshape(copies, -1))[:, :-1].reshape(-1, length)

    arguments = {
        "input_ids": grid(batch["input_ids"]),
        "position_ids": grid(positions),
        "attention_mask": for_attention(model, keeps_apart(grid(example_of), grid(branches))),
    }
    wanted = batch["cells"].flatten(1).gather(1, batch["rows"]).view(copies, -1)
    first = torch.arange(copies, device=cells.device).unsqueeze(1) * (rows * length)
    wanted = wanted + first
    return arguments, Rows(wanted.view(-1), _places(wanted, batch, rows))


def _in_grid(states: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Hidden states [B, S, T, D] where their tokens stand in the packed grids: [copies * rows, length, D]."""
    copies, (rows, length) = batch["copies"], batch["grid"]
    cells = batch["cells"].view(copies, -1)
    first = torch.arange(copies, device=cells.device).unsqueeze(1) * (rows * length)
    # one cell more takes all padding
    cells = torch.where(cells < rows * length, cells + first, copies * rows * length)
    filled = states.new_zeros(copies * rows * length + 1, states.shape[-1])
    filled.index_copy_(0, cells.flatten(), states.flatten(0, 2))
    return filled[:-1].view(copies * rows, length, -1)


def _places(wanted: Tensor, batch: dict[str, Tensor], rows: int) -> Tensor | None:
    """The cells `wanted` [copies, B * R] by row of their grids: [copies * rows, Q], as `Rows.places` has them."""
    if not batch["queries"]:
        return None
    copies, (_, length) = batch["copies"], batch["grid"]
    places = wanted.new_full((copies, rows * batch["queries"]), copies * rows * length)
    return places.scatter_(1, batch["slots"].view(copies, -1), wanted).view(copies * rows, -1)


def _apart(model: nn.Module, ids: Tensor) -> Tensor:
    """The logits of texts `ids` [N, T], run as a grid in which each has a row."""
    there = torch.ones_like(ids)
    mask = for_attention(model, keeps_apart(there, torch.zeros_like(ids)))
    return model(input_ids=ids, position_ids=_positions(there), attention_mask=mask, use_cache=False).logits


def _plain(model: nn.Module, ids: Tensor) -> Tensor:
    """The logits of texts `ids` [N, T]."""
    return model(input_ids=ids, use_cache=False).logits


def _is_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _positions(mask: Tensor) -> Tensor:
    """The position of each token in its sequence; `mask` [..., T] is 0 where there is padding."""
    return (mask.cumsum(dim=-1) - 1).clamp_(min=0)


def mean_log_probabilities(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """[B, R, V] logits of the gathered rows to [B, C] mean log-probabilities."""
    shape = batch["option_rows"].shape
    rows, targets = batch["option_rows"].flatten(1), batch["option_targets"].flatten(1)
    flat = rows * logits.shape[-1] + targets
    chosen = logits.flatten(1).gather(1, flat) - logits.logsumexp(dim=-1).gather(1, rows)
    mask = batch["option_mask"]
    tokens = mask.sum(dim=-1)
    mean = (chosen.view(shape) * mask).sum(dim=-1) / tokens.clamp(min=1)
    return mean.masked_fill(tokens == 0, float("-inf"))
