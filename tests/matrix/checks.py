"""What is tried of an architecture, from its scores to PEFT, and the row that says what came of it."""

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import peft
import torch

import xgblora
from tests.matrix.architectures import build
from xgblora.adapters.attach import by_kind
from xgblora.adapters.targets import ALL_LINEAR
from xgblora.errors import InputError
from xgblora.objectives.texts import CandidateObjective, classification
from xgblora.replaying import rebuild
from xgblora.scoring import Collator, EncodedExample, log_probabilities
from xgblora.spelling import one_line

# of the largest score: what a model of width 32 loses to rounding
ROUNDING = 1e-4


@dataclass(frozen=True)
class Row:
    """What came of an architecture.

    Attributes:
        kind: its type in transformers.
        scores: how its texts are run.
        layers: what `all-linear` adapts of two layers, by kind.
        peft: whether PEFT computes the same with the exported boosters, or why it takes none.
        refused: the line that refuses it; empty for one that works.
    """

    kind: str
    scores: str = ""
    layers: str = ""
    peft: str = ""
    refused: str = ""

    def __str__(self) -> str:
        """Of a table of Markdown."""
        return f"| `{self.kind}` | {self.scores or 'refused: ' + self.refused} | {self.layers} | {self.peft} |"


def text(length: int, seed: int) -> EncodedExample:
    """A text with two candidates, of one token and of two."""
    ids = torch.randint(5, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return EncodedExample((tuple(ids),), ((0, length - 1), (0, length // 2)), (((0, 7),), ((0, 9), (1, 11))), seed % 2)


EXAMPLES = [text(length, seed) for seed, length in enumerate((5, 32, 17, 24))]


@torch.no_grad()
def plain_scores(model) -> torch.Tensor:
    """The scores of each text alone, by a forward without anything else."""
    scores = []
    for example in EXAMPLES:
        logits = model(input_ids=torch.tensor([example.sequences[0]]), use_cache=False).logits[0].log_softmax(dim=-1)
        picked = [[logits[example.rows[row][1], token] for row, token in option] for option in example.options]
        scores.append(torch.stack([torch.stack(of_one).mean() for of_one in picked]))
    return torch.stack(scores)


def assert_near(ours: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    error = ((ours - expected).abs().max() / expected.abs().max()).item()
    assert error <= ROUNDING, f"{what}: {error:.1e}"


def examine(kind: str, folder: Path) -> Row:
    """Try everything; an AssertionError says what is wrong.

    Args:
        kind: an architecture.
        folder: for the PEFT adapter.
    """
    model = build(kind)
    with logged() as lines:
        try:
            objective = CandidateObjective(model, classification, longest=32)
            evaluated = torch.tensor(log_probabilities(model, EXAMPLES))
        except InputError as error:
            return Row(kind, refused=str(error))
    batch, base = Collator(0)(EXAMPLES), plain_scores(model)
    assert_near(evaluated, base, "evaluation")
    with torch.no_grad():
        assert_near(objective.scorer.scores(model, batch), base, "training")
    adapters = xgblora.attach(model, ALL_LINEAR, alpha=1.0)
    layers = by_kind(adapters.layers)
    booster, keys = xgblora.Booster(adapters), set(build(kind).state_dict())
    _train(adapters, objective, batch)
    trained = plain_scores(model)
    assert (trained - base).abs().max() > 5 * ROUNDING * base.abs().max(), "training changed nothing"
    booster.merge()
    assert_near(plain_scores(model), trained, "merge")
    twin = rebuild(build(kind), booster.ledger)
    assert all(map(torch.equal, twin.adapters.weights(), adapters.weights())), "base + ledger"
    in_peft = _in_peft(kind, booster.ledger, folder, trained)
    xgblora.detach(model)
    assert set(model.state_dict()) == keys, "detach"
    assert_near(plain_scores(model), trained, "detach")
    return Row(kind, _way(lines, objective), layers, in_peft)


def _in_peft(kind: str, ledger: xgblora.Ledger, folder: Path, trained: torch.Tensor) -> str:
    try:
        xgblora.export_peft(ledger, folder, base_model=build(kind))
    except InputError as error:
        return f"refused: {error}"
    try:
        loaded = peft.PeftModel.from_pretrained(build(kind), folder).eval()
    except ValueError as error:
        # by PEFT's own rules for an architecture
        reason = one_line(error).removeprefix("[PEFT:PeftType.LORA] ").partition(" (")[0]
        return f"refused by PEFT: {reason}"
    assert_near(plain_scores(loaded), trained, "PEFT")
    return "the same"


def _train(adapters, objective, batch) -> None:
    """A step by forwards and one by backpropagation, from an adapter that matters."""
    arena = adapters.arena
    with torch.no_grad():
        arena.master.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(0))
    arena.restore()
    zo = xgblora.ZeroOrder(adapters, objective, eps=1e-3, lr=1e-4, seed=1)
    assert zo.step(batch).projected_grad.isfinite().all(), "zeroth order"
    assert zo.skipped_steps.item() == 0, "zeroth order"
    arena.read_master()
    objective(adapters.model, batch).mean().backward()
    # a choice of the tokens that are attended to has no gradient
    gradients = [layer.b.grad for layer in adapters.layers.values() if layer.b.grad is not None]
    assert len(gradients) >= len(adapters.layers) / 2, "backpropagation"
    assert all(gradient.isfinite().all() for gradient in gradients), "backpropagation"
    for layer in adapters.layers.values():
        layer.a.grad = layer.b.grad = None


def _way(lines: list[str], objective: CandidateObjective) -> str:
    if objective.packs:
        spared = not any(line.startswith("The last layer") for line in lines)
        return "packed" + (", last layer spared" if spared else "")
    right = [line.partition("on the right, ")[2].partition(" in a forward")[0] for line in lines if "the right" in line]
    reason = next(line.partition("not packed: ")[2] for line in lines if "not packed" in line)
    return f"padded on the {'right, ' + right[0] if right else 'left'} (not packed: {reason})"


@contextmanager
def logged():
    """Gives the list of the lines that the package logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("xgblora")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
