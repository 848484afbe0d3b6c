"""`Evolution`: a model that learns from rewards alone. One step asks, completes, scores and tells.

All that a step decides follows from the flags and its number: which prompts, which members, which noise their texts are
drawn with. So a run that goes on from a checkpoint is the run that was not stopped.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from xgblora.boosting import Booster
from xgblora.completions import Completion, Sampling, generate_for_members
from xgblora.completions.members import TOKENS
from xgblora.ops.noise import derive_seed
from xgblora.population import Told
from xgblora.rewards import RewardPool, Text
from xgblora.rewards.pool import Scored
from xgblora.rewards.prompts import Prompt
from xgblora.scoring.generation import check_room, prompt_ids
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.check_schedule import rates_of
from xgblora.training.from_flags import population_of
from xgblora.training.population_step import tell

# what is drawn with the seed of a run: members by `Population`, and these
_ORDER, _TOKENS = 1, 2


@dataclass(frozen=True)
class Judged:
    """A completion and what it is worth."""

    prompt: Prompt
    completion: Completion
    scored: Scored

    def to_json(self) -> dict:
        """As a line of `completions.jsonl` has it; None stands for a reward that failed."""
        return {
            "prompt": self.prompt.text,
            "completion": self.completion.text,
            "truncated": self.completion.truncated,
            "reward": _finite(self.scored.value),
            "rewards": {name: _finite(value) for name, value in self.scored.rewards.items()},
            "failures": list(self.scored.failures),
            "row": self.prompt.origin,
        }


@dataclass(frozen=True)
class Step:
    """What came of a step.

    Attributes:
        told: what the population says of it.
        judged: [P] lists, the completions of each member by prompt.
    """

    told: Told
    judged: list[list[Judged]]

    @property
    def texts(self) -> list[Judged]:
        """Those of all members."""
        return [one for of_member in self.judged for one in of_member]


class Evolution:
    """A population over a model, prompts, and rewards.

    Args:
        model, tokenizer: a causal language model, its adapters attached.
        booster: over these adapters.
        prompts: to learn from.
        pool: what runs the rewards.
        args: the flags.
        max_length, max_new_tokens: of prompt and completion together, and of a completion, in tokens.

    Attributes:
        steps: at which the run ends.

    Raises:
        InputError: a flag is out of range, or there is no room for a prompt.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        booster: Booster,
        prompts: Sequence[Prompt],
        pool: RewardPool,
        args: XGBLoRAArguments,
        *,
        max_length: int,
        max_new_tokens: int,
    ):
        self.steps = args.max_steps
        if self.steps <= 0:
            self.steps = max(1, round(args.num_train_epochs * len(prompts) / args.prompts_per_step))
        self.population = population_of(booster, args, lambda: self.steps)
        self._rates = rates_of(args, self.steps)
        self.sampling = sampling_of(args, max_new_tokens)
        check_room(max_length, max_new_tokens)
        self.model, self.tokenizer, self.booster = model, tokenizer, booster
        self._prompts, self._pool, self._args, self._max_length = prompts, pool, args, max_length
        self._ids = [self._encoded(prompt) for prompt in prompts]
        longest = max(map(len, self._ids)) + max_new_tokens
        # members that are attached at a time: one prompt of each fits into a batch
        self.block = min(args.members, max(1, TOKENS // (longest * args.completions)))

    def step(self) -> Step:
        """Make one step."""
        number, members = self.population.step, self.population.ask(self._args.members)
        chosen = chosen_prompts(len(self._prompts), self._args.prompts_per_step, number, self._args.seed)
        written: list[list[list[Completion]]] = []
        for start in range(0, len(members), self.block):
            stop = min(start + self.block, len(members))
            with members.attached(start, stop):
                written += generate_for_members(
                    self.model,
                    self.tokenizer,
                    self.booster.adapters,
                    [self._ids[place] for place in chosen],
                    members=stop - start,
                    sampling=self.sampling,
                    seed=derive_seed(self._args.seed, _TOKENS, number),
                    numbers=chosen,
                    max_length=self._max_length,
                )
        prompts = [self._prompts[place] for place in chosen]
        judged = self._judged([prompts] * len(members), written)
        fitness = [self._fitness(of_member) for of_member in judged]
        return Step(tell(self.population, fitness, self._rates[number]), judged)

    def evaluate(self, prompts: Sequence[Prompt]) -> list[Judged]:
        """The likeliest completions of prompts by the model as it is, and what they are worth."""
        sampling = Sampling(0.0, max_new_tokens=self.sampling.max_new_tokens, stop=self.sampling.stop)
        ids = [self._encoded(prompt) for prompt in prompts]
        written = generate_for_members(
            self.model, self.tokenizer, None, ids, sampling=sampling, max_length=self._max_length
        )
        return self._judged([prompts], written)[0]

    def _encoded(self, prompt: Prompt) -> list[int]:
        room = self._max_length - self.sampling.max_new_tokens
        return list(prompt.ids[-room:]) if prompt.ids is not None else prompt_ids(self.tokenizer, prompt.text, room)

    def _judged(self, prompts: Sequence[Sequence[Prompt]], written: list) -> list[list[Judged]]:
        """Score what members wrote: by member, prompt and completion."""
        pairs = [
            [(prompt, one) for prompt, texts in zip(of, by, strict=True) for one in texts]
            for of, by in zip(prompts, written, strict=True)
        ]
        texts = [
            Text(prompt.text, one.text, prompt.row, prompt.origin) for of_member in pairs for prompt, one in of_member
        ]
        scored: Iterator[Scored] = iter(self._pool.score(texts))
        return [[Judged(*pair, next(scored)) for pair in of_member] for of_member in pairs]

    def _fitness(self, judged: list[Judged]) -> list[float]:
        """The mean reward of each prompt's completions."""
        each = self.sampling.completions
        values = [one.scored.value for one in judged]
        return [sum(values[place : place + each]) / each for place in range(0, len(values), each)]


def sampling_of(args: XGBLoRAArguments, max_new_tokens: int) -> Sampling:
    """How members write in training.

    Raises:
        InputError: a flag is out of range, or several greedy texts are asked for.
    """
    return Sampling(args.temperature, args.top_p, args.completions, max_new_tokens, tuple(args.stop or ()))


def chosen_prompts(count: int, per_step: int, step: int, seed: int) -> list[int]:
    """The numbers of the prompts of a step, 0 for the first: all are seen once before one is seen again."""
    places = range(step * per_step, (step + 1) * per_step)
    orders = {epoch: _order(count, epoch, seed) for epoch in {place // count for place in places}}
    return [orders[place // count][place % count] for place in places]


def mean_of(values: Sequence[float]) -> float:
    """The mean of the finite ones; NaN where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _order(count: int, epoch: int, seed: int) -> list[int]:
    return sorted(range(count), key=lambda number: derive_seed(seed, _ORDER, epoch, number))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
