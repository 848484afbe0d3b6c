"""Log-probabilities of the candidates of a batch.

Batches run packed, without padding, on models that give the same scores so: a small batch is tried both ways. What does
not predict an option token is spared the end of the model (`xgblora.scoring.option_rows`), and what is the same in all
copies of a batch its beginning (`xgblora.scoring.trunk`).
"""

import inspect
import logging
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from xgblora.errors import InputError
from xgblora.eval_mode import in_eval_mode
from xgblora.scoring.collator import Collator
from xgblora.scoring.encoding import EncodedExample
from xgblora.scoring.option_rows import MISFITS, OptionRows, Rows, agree, short_texts
from xgblora.scoring.packing import for_attention, keeps_apart, reason_not_to_pack
from xgblora.scoring.trunk import Trunk
from xgblora.spelling import one_line

logger = logging.getLogger("xgblora")


class OptionScorer:
    """Scores the candidates of batches made by `Collator` with a causal language model.

    Args:
        model: a model with `get_output_embeddings()`; it has hooks within `scores` and none outside.

    Attributes:
        packs: whether batches that have a `grid` run packed, as long as one adapter reads each copy of a batch: in the
            grid its examples stand side by side.

    Raises:
        InputError: the model has no output embeddings.
    """

    def __init__(self, model: nn.Module):
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if head is None:
            raise InputError(f"{type(model).__name__} has no output embeddings: it is no language model")
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._rows, self._trunk = OptionRows(model), Trunk(model)
        reason = reason_not_to_pack(model, list(parameters)) or self._reason_by_trial(model)
        self.packs = reason is None
        if reason:
            logger.info("Batches are padded, not packed: %s", reason)
            return
        reason = self._rows.spare(model, lambda ids: _apart(model, ids))
        if reason:
            logger.info("The last layer computes all positions: %s", reason)

    def scores(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Mean log-probability of the option tokens of each candidate: fp32 [B, C], -inf for padding candidates."""
        packed = self.packs and "grid" in batch and batch["groups"] == batch["copies"]
        arguments, rows = self._arguments(model, batch, packed)
        with self._below_skipped(model, batch, packed), self._rows.only(rows):
            logits = model(**arguments, use_cache=False).logits.float()
        return _mean_log_probabilities(logits.view(len(batch["label"]), -1, logits.shape[-1]), batch)

    def states(self, model: nn.Module, batch: dict[str, Tensor], first: str) -> Tensor:
        """The hidden states of a batch that the block called `first` is given: [B, S, T, D], zero for padding."""
        packed = self.packs and "grid" in batch
        hidden = self._run_below(model, batch, packed, first)
        if not packed:
            there = batch["attention_mask"].bool().unsqueeze(-1)
            return hidden.view(*batch["input_ids"].shape, -1).masked_fill(~there, 0)
        # what has no cell of its own stands in the row after the last
        of_cells = pad(hidden.flatten(0, 1), (0, 0, 0, 1))
        return of_cells.index_select(0, batch["cells"].flatten()).view(*batch["cells"].shape, -1)

    def can_skip(self, model: nn.Module, first: str, groups: int = 1) -> bool:
        """Whether forwards may begin at the block called `first`, see `Trunk.fits`; `groups` adapters are read."""
        forward = partial(_apart if self.packs else _plain, model)
        return self._trunk.fits(first, forward, short_texts(model), groups)

    def _below_skipped(self, model: nn.Module, batch: dict[str, Tensor], packed: bool) -> AbstractContextManager[None]:
        """Within the block a forward skips what is known of the batch, or the same in all its copies and run here."""
        first, copies, known = batch["trunk"], batch["copies"], batch.get("states_at", "")
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
        arguments, rows = self._arguments(model, batch, packed)
        # some row must go through the vocabulary
        with self._known_skipped(batch, packed), self._rows.only(Rows(rows.rows[:1])):
            return self._trunk.states(lambda: model(**arguments, use_cache=False), first)

    def _arguments(self, model: nn.Module, batch: dict[str, Tensor], packed: bool) -> tuple[dict[str, Tensor], Rows]:
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

    @torch.no_grad()
    def _reason_by_trial(self, model: nn.Module) -> str | None:
        """Why packed batches give other scores than padded ones; None: they do not.

        Documentation does not tell which architectures take a mask of their own, and some take and ignore it.
        """
        device, last = model.get_input_embeddings().weight.device, model.get_input_embeddings().num_embeddings - 1
        if device.type == "meta":
            return "the model has no weights yet"
        batch = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in Collator(0)(_trial_examples(last)).items()
        }
        try:
            with in_eval_mode(model):
                self.packs = False
                padded = self.scores(model, batch)
                self.packs = True
                packed = self.scores(model, batch)
        except MISFITS as error:
            if not self.packs:
                raise
            return f"the model takes no such mask ({one_line(error, limit=100)})"
        there = batch["option_mask"].any(dim=-1)
        if agree(packed[there], padded[there], next(model.parameters()).dtype):
            return None
        return "the model's scores are others when it is given positions and a mask"


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


def _trial_examples(last: int) -> list[EncodedExample]:
    """Examples of every form; token ids go up to `last`."""
    one, two, three, four, five = (min(token, last) for token in (5, 9, 2, 7, 4))
    forked = EncodedExample(
        ((one, two, three, four), (one, two, five)),
        ((0, 1), (0, 2), (0, 3), (1, 1), (1, 2)),
        (((0, three), (1, four), (2, one)), ((3, five), (4, two))),
        0,
    )
    plain = EncodedExample(((four, three, two, five, one),), ((0, 3), (0, 4)), (((0, one), (1, two)), ((1, four),)), 1)
    return [plain, forked, plain]


def _mean_log_probabilities(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """[B, R, V] logits of the gathered rows to [B, C] mean log-probabilities."""
    shape = batch["option_rows"].shape
    rows, targets = batch["option_rows"].flatten(1), batch["option_targets"].flatten(1)
    flat = rows * logits.shape[-1] + targets
    chosen = logits.flatten(1).gather(1, flat) - logits.logsumexp(dim=-1).gather(1, rows)
    mask = batch["option_mask"]
    tokens = mask.sum(dim=-1)
    mean = (chosen.view(shape) * mask).sum(dim=-1) / tokens.clamp(min=1)
    return mean.masked_fill(tokens == 0, float("-inf"))
