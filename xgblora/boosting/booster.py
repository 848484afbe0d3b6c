"""`Booster`: merge the trained adapter into the base weights, record it, start the next."""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from xgblora.adapters import AdapterSet
from xgblora.boosting.base_copy import BaseCopy
from xgblora.boosting.ledger import Ledger
from xgblora.boosting.merged import Merged, MergedAdapter, MergedNoise
from xgblora.boosting.overflow import MergeOverflow, Reach
from xgblora.boosting.remainders import REMAINDERS, Remainders
from xgblora.boosting.starts import RoundStart, Samples, check_share
from xgblora.boosting.terms import Fade, NoiseTerm, Target, Term
from xgblora.errors import InputError
from xgblora.ops.merge_rank1 import ROUNDINGS
from xgblora.spelling import dtype_name
from xgblora.tape import Tape

logger = logging.getLogger("xgblora")


class Booster:
    """Boosting rounds over the adapters of a model (XGBLoRA, Zhang et al., 2024).

    Args:
        adapters: from `xgblora.attach`, nothing merged yet. An adapter of rank r is merged as r rank-1 terms.
        rounding: "remainder" (exact; 16-bit weights carry an int16 plane), "stochastic" or "nearest".
        remainders: where the planes lie: "device", or "host", from where a layer's goes to the device for a merge.
        reinit: how a round's adapter starts, one of `xgblora.boosting.starts.REINITS`.
        colsample: share of the layers that a round trains.
        samples: what a measured start looks at; of no meaning to the others.

    Attributes:
        ledger: all boosters merged so far.
        samples: as given; may be set as long as no start is to be measured.
        tape: where merges and rollbacks are recorded, None unless `start_tape` began one.

    A weight that cannot be written (quantised) keeps its boosters in a bank beside it. The first merge keeps
    the adapted base weights, from which `rollback` starts again: see `BaseCopy`.

    Raises:
        InputError: rounding, remainders or reinit is unknown, or colsample out of range.
    """

    def __init__(
        self,
        adapters: AdapterSet,
        *,
        rounding: str = "remainder",
        remainders: str = "device",
        reinit: str = "kaiming",
        colsample: float = 1.0,
        samples: Samples | None = None,
    ):
        if rounding not in ROUNDINGS:
            raise InputError(f"rounding={rounding}: must be one of {', '.join(ROUNDINGS)}")
        self._planes = REMAINDERS.get(remainders)
        if self._planes is None:
            raise InputError(f"remainders={remainders}: must be one of {', '.join(REMAINDERS)}")
        self.adapters, self.rounding, self.samples = adapters, rounding, samples
        self.tape: Tape | None = None
        self.ledger = Ledger(adapters.identify(), adapters.arena.slots, rounding, RoundStart(reinit, colsample))
        self._base: BaseCopy | None = None
        self._remainders: Remainders | None = None
        self._reach = Reach(adapters)
        if rounding == "nearest" and adapters.compute_dtype != torch.float32:
            logger.warning(
                "rounding=nearest loses most of a small merge into %s weights; rounding=remainder is exact",
                dtype_name(adapters.compute_dtype),
            )
        if self.ledger.start != RoundStart():
            self._start_round()
        if samples is not None:
            self.begin()

    @property
    def boosters(self) -> Sequence[Merged]:
        """All that were merged so far, as the ledger has them."""
        return self.ledger.boosters

    @property
    def measured_starts(self) -> Collection[Tensor]:
        """The starts that were measured so far, fp32 [P] each."""
        return self.ledger.measured.values()

    @property
    def start(self) -> RoundStart:
        """How rounds start."""
        return self.ledger.start

    @property
    def round(self) -> int:
        """The round in training: 1 before the first merge."""
        return len(self.ledger) + 1

    @torch.no_grad()
    def merge(
        self,
        *,
        step: int = 0,
        epoch: float = 0.0,
        held_out_loss: float | None = None,
        kept_step: int | None = None,
        shrinkage: float = 1.0,
        begins: bool = True,
    ) -> MergedAdapter:
        """End the round: write the adapter into the weights, record it, and start the next adapter.

        The function of the model stays what it was, up to the rounding of the weights' dtype, unless it is shrunken.

        Args:
            step, epoch: how far training is.
            held_out_loss: of the model with this booster, if it was measured.
            kept_step: the step whose weights the round went back to, if it did.
            shrinkage: factor on the adapter's scale, above 0 and at most 1.
            begins: whether the next round begins with it. False leaves that to `begin`: a start that is measured costs
                something, and perhaps no step follows. Of starts that are derived it makes no difference.

        Raises:
            MergeOverflow: a weight would pass the range of its dtype; nothing was changed.
            InputError: `shrinkage` is out of range, or not 1 though the base took back what the round started with; a
                start is to be measured without `samples`, or that of the round itself was not; the adapters were
                detached.
        """
        self.adapters.arena.refuse_detached()
        check_share("shrinkage", shrinkage)
        if shrinkage != 1.0 and self.ledger.takes_from_base(len(self.ledger)):
            raise InputError(f"shrinkage={shrinkage}: must be 1.0 with reinit={self.ledger.start.reinit}")
        if begins and self.awaits_start:
            raise InputError(
                f"reinit={self.start.reinit}: the start of round {self.round} was not measured; begin() first"
            )
        if begins and self.start.measures:
            self._check_samples()
        trained = self.adapters.arena.master
        booster = MergedAdapter(
            round=self.round,
            step=step,
            epoch=epoch,
            scale=shrinkage * self.adapters.scale,
            # never a view: on a CPU `.cpu()` would hand back the arena itself
            adapters=trained.to("cpu", copy=True),
            held_out_loss=held_out_loss,
            kept_step=kept_step,
        )
        self._merge_or_undo([Term(booster.round, trained, booster.scale)])
        self.ledger.add(booster)
        if self.tape is not None:
            self.tape.record_merge(booster.round, step, shrinkage, booster.adapters)
        self._start_round()
        if begins:
            self.begin()
        return booster

    @torch.no_grad()
    def merge_noise(
        self,
        seeds: Tensor,
        coefficients: Tensor,
        *,
        step: int = 0,
        epoch: float = 0.0,
        decay: float = 1.0,
        held_out_loss: float | None = None,
    ) -> MergedNoise:
        """Make a weighted sum of rank-1 noise the booster of this round, in one pass, and start the next round.

        Args:
            seeds, coefficients: int64 [T] and fp32 [T], see `xgblora.ops.merge_noise_`.
            step, epoch, held_out_loss: as of `merge`.
            decay: what all earlier boosters are multiplied with first, above 0 and at most 1.

        Raises:
            MergeOverflow: a weight would pass the range of its dtype; nothing was changed.
            InputError: `refuse_noise` says why, or the adapter in training does something.
        """
        refuse_noise(self, decay)
        if self.is_trained():
            raise InputError("merge_noise: the adapter in training is not empty; merge() it first")
        # never the caller's own
        parts = seeds.to("cpu", torch.int64, copy=True), coefficients.to("cpu", torch.float32, copy=True)
        booster = MergedNoise(self.round, step, epoch, *parts, decay, held_out_loss)
        self._merge_or_undo(booster.terms())
        self.ledger.add(booster)
        self._start_round()
        return booster

    def enter_unmerged(self, *, step: int, epoch: float) -> None:
        """Enter the adapter in training as the last booster, though the weights cannot take it (`MergeOverflow`)."""
        adapter = self.adapters.arena.master.to("cpu", copy=True)
        self.ledger.add(MergedAdapter(self.round, step, epoch, self.adapters.scale, adapter))

    def record_held_out_loss(self, step: int, loss: float) -> None:
        """Enter a loss that was measured after a merge, see `Ledger.record_held_out_loss`."""
        self.ledger.record_held_out_loss(step, loss)

    @property
    def awaits_start(self) -> bool:
        """Whether the start of the round in training is measured, and was not yet."""
        return self.ledger.start.measures and len(self.ledger) not in self.ledger.measured

    @torch.no_grad()
    def begin(self, start: Tensor | None = None) -> None:
        """Measure the start of a round, before its first step, and record it; nothing where it is derived, or known.

        Args:
            start: the start, fp32 [P], where it is known from a record.

        Raises:
            InputError: it is to be measured without `samples`, or cannot be, or is given and not awaited.
        """
        if not self.awaits_start:
            if start is not None:
                raise InputError(f"start: with reinit={self.start.reinit} round {self.round} awaits none")
            return
        round = len(self.ledger)
        if start is None:
            self._check_samples()
            self.adapters.reinitialise(round=round)
            start = self.samples.agreed(self.start.measure(self.adapters, self.samples, round))
        self.ledger.measured[round] = start.to("cpu", copy=True)
        if self.tape is not None:
            self.tape.record_start(start)
        self._start_round()

    def is_trained(self) -> bool:
        """Whether the adapter in training does anything that it did not do where the round started."""
        return self.ledger.is_trained(self.adapters.arena.master)

    @torch.no_grad()
    def end(self) -> None:
        """Leave base + ledger in the weights and an adapter that is zero; when training is over.

        What a start that was not zero took from the base, and nothing was trained upon, is in it again.
        """
        if self.ledger.takes_from_base(len(self.ledger)):
            self._write_anew(self.ledger.terms())
        self.adapters.reinitialise(round=len(self.ledger))

    @torch.no_grad()
    def rollback(self, *, round: int) -> None:
        """Give the weights after round `round` again (0: the base) and start the adapter of the round after it.

        Raises:
            InputError: there is no such round.
        """
        if isinstance(round, bool) or not isinstance(round, int) or not 0 <= round <= len(self.ledger):
            raise InputError(f"round={round}: must be from 0 to {len(self.ledger)}, the number of boosters")
        if self.tape is not None:
            self.tape.record_rollback(round)
        self.replay(self.ledger.first(round))

    @torch.no_grad()
    def replay(self, ledger: Ledger) -> None:
        """Set the weights to base + `ledger`, whatever was merged before, and start the adapter of the next round.

        Raises:
            MergeOverflow: a booster of the ledger was never merged, because a weight passes the range of its dtype.
            InputError: the ledger belongs to another model, other adapters, another rounding or other starts.
        """
        self.ledger.origin.refuse_other(ledger.origin, "the ledger belongs to another run")
        if ledger.rounding != self.rounding:
            raise InputError(
                f"the ledger belongs to another run: rounding is {ledger.rounding} there and {self.rounding} here"
            )
        if ledger.start != self.ledger.start:
            raise InputError(
                f"the ledger belongs to another run: rounds start as {ledger.start} there and {self.ledger.start} here"
            )
        self._write_anew(ledger.terms())
        self._reach.refuse_overflow("base + boosters")
        self.ledger = replace(ledger, boosters=list(ledger.boosters), measured=dict(ledger.measured))
        self._start_round()

    def _check_samples(self) -> None:
        if self.samples is None:
            raise InputError(f"reinit={self.start.reinit}: measures how a round starts; give Booster(samples=...)")

    def _start_round(self) -> None:
        ledger, round = self.ledger, len(self.ledger)
        arena = self.adapters.arena
        self.adapters.start(
            ledger.start_of(round, arena.master.device),
            trained=ledger.start.layers(ledger.slots, ledger.origin.seed, round),
            trains_a=ledger.start.strategy.trains_a,
        )
        offset = ledger.start_offset(round, arena.master.device)
        if offset is not None:
            self._write(offset)

    def save_ledger(self, path: Path, *, about: dict | None = None) -> None:
        """Write the ledger; `about` as of `Ledger.save`."""
        self.ledger.save(path, about=about)

    def load_ledger(self, path: Path) -> None:
        """`replay` the ledger in the file `path`."""
        self.replay(Ledger.load(path))

    def _write_anew(self, terms: Iterable[Term]) -> None:
        """Set the weights to base + `terms`, whatever was merged before."""
        for layer in self.adapters.layers.values():
            if not layer.mergeable:
                layer.clear_bank()
        if self._base is not None:
            self._base.restore()
            self._remainders = self._zero_remainders()
            self._reach.forget()
        for term in terms:
            self._write(term)

    def _write(self, term: Term | NoiseTerm | Fade) -> None:
        if self._base is None:
            self._base = BaseCopy(self.adapters)
            self._remainders = self._zero_remainders()
        self._reach.add(term)
        term.write(Target(self.adapters, self.rounding, self._base, self._remainders))

    def _merge_or_undo(self, terms: Iterable[Term | NoiseTerm | Fade]) -> None:
        """Write what a round came to; if that overflows, give the weights back what they were, bit for bit."""
        for term in terms:
            self._write(term)
        try:
            self._reach.refuse_overflow(f"the merge of round {self.round} was not made")
        except MergeOverflow:
            offset = self.ledger.start_offset(len(self.ledger), self.adapters.arena.master.device)
            self._write_anew((*self.ledger.terms(), *([] if offset is None else [offset])))
            raise

    def _zero_remainders(self) -> Remainders | None:
        return self._planes(self.adapters.weights()) if self.rounding == "remainder" else None


def refuse_noise(booster: Booster, decay: float = 1.0) -> None:
    """Raise InputError where `booster` cannot take noise into the weights, in a line that says what could be done."""
    check_share("decay", decay)
    booster.adapters.arena.refuse_detached()
    if booster.tape is not None:
        raise InputError("noise in the weights: is recorded in the ledger alone; leave the tape out")
    if booster.start != RoundStart():
        raise InputError(f"noise in the weights: goes with rounds that start as {RoundStart()}, not {booster.start}")
    if booster.adapters.rank != 1:
        raise InputError(f"noise in the weights: is of rank 1, and rank={booster.adapters.rank}; attach with rank=1")
    if not all(layer.mergeable for layer in booster.adapters.layers.values()):
        raise InputError("noise in the weights: a weight cannot be written (quantised); perturb the adapters instead")
    if decay != 1.0 and booster.rounding != "remainder":
        raise InputError(f"decay={decay}: needs rounding=remainder, not {booster.rounding}")
