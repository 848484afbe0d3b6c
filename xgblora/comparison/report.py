"""What the runs say together: mean and spread over seeds, each method's best setting, differences, equal curves."""

import itertools
import math
from dataclasses import dataclass

from xgblora.comparison.methods import Method
from xgblora.comparison.results import FinishedRun
from xgblora.comparison.runs import Ended, PlannedRun
from xgblora.comparison.sweep import Setting

FORMAT = "xgblora-comparison-1"


@dataclass(frozen=True)
class Spread:
    """Numbers over seeds.

    Attributes:
        mean: None of no number.
        deviation: the standard deviation, with n - 1; None of fewer than two.
        n: how many there are.
    """

    mean: float | None
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: list[float | None]) -> "Spread":
        """The spread of what is not None."""
        known = [value for value in values if value is not None]
        n = len(known)
        if not n:
            return cls(None, None, 0)
        mean = math.fsum(known) / n
        squares = math.fsum((value - mean) ** 2 for value in known)
        return cls(mean, math.sqrt(squares / (n - 1)) if n > 1 else None, n)

    @property
    def error(self) -> float | None:
        """The standard error of the mean."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.n)

    def to_json(self) -> dict:
        """For the JSON."""
        return {"mean": self.mean, "standard_deviation": self.deviation, "standard_error": self.error, "n": self.n}


@dataclass(frozen=True)
class Candidate:
    """A method with one setting, on all seeds."""

    method: Method
    setting: Setting
    runs: list[FinishedRun]
    unfinished: int

    def spread(self, examples: str, name: str | None = None, when: str = "trained") -> Spread:
        """Of a number of `metrics.json` over seeds; of the task's metric without a name."""
        return Spread.of([run.measured(examples, name or run.metric, when) for run in self.runs])


@dataclass(frozen=True)
class Difference:
    """How much higher the metric of one method is than that of another on the held-out set, seed by seed."""

    method: str
    other: str
    spread: Spread


@dataclass(frozen=True)
class SameCurve:
    """Whether two methods have the same step losses, to the last bit, by seed."""

    method: str
    other: str
    by_seed: dict[int, bool]

    @property
    def everywhere(self) -> bool:
        """On every seed."""
        return all(self.by_seed.values())


@dataclass(frozen=True)
class Report:
    """All that is known.

    Attributes:
        metric: the task's; None if no run has finished.
        candidates: every method with every setting, in order.
        chosen: for each method, the setting that is best on the development set; none for a method of which no setting
            has a finished run.
        failures: how the runs ended that did not finish.
        seeds: that all methods were to run on.
    """

    metric: str | None
    candidates: list[Candidate]
    chosen: list[Candidate]
    failures: list[tuple[PlannedRun, Ended]]
    seeds: list[int]

    @property
    def differences(self) -> list[Difference]:
        """Of every two methods with a gradient, or without, the better first; only seeds that both finished count."""
        pairs = itertools.combinations(self.chosen, 2)
        return [_difference(*pair) for pair in pairs if pair[0].method.has_gradient == pair[1].method.has_gradient]

    @property
    def same_curves(self) -> list[SameCurve]:
        """Of every two methods with a seed in common."""
        compared = [_same_curve(*pair) for pair in itertools.combinations(self.chosen, 2)]
        return [same for same in compared if same.by_seed]


def make(runs: list[PlannedRun], ended: dict[str, Ended], seeds: list[int]) -> Report:
    """The report on `runs`; `ended` says by their names how those ended that did not finish."""
    candidates = []
    for (_, setting), group in itertools.groupby(runs, key=lambda run: (run.method.name, run.setting)):
        of_seeds = list(group)
        finished = [FinishedRun(run) for run in of_seeds if run.done]
        candidates.append(Candidate(of_seeds[0].method, setting, finished, len(of_seeds) - len(finished)))
    chosen = [best(list(of)) for _, of in itertools.groupby(candidates, key=lambda candidate: candidate.method.name)]
    metric = next((run.metric for candidate in candidates for run in candidate.runs), None)
    failures = [(run, ended[run.name]) for run in runs if run.name in ended]
    return Report(metric, candidates, [one for one in chosen if one is not None], failures, seeds)


def best(candidates: list[Candidate]) -> Candidate | None:
    """The candidate with the highest metric on the development set, of those with most seeds finished.

    Of equals the one with the lower development loss, then the first.
    """
    most = max(len(candidate.runs) for candidate in candidates)
    if not most:
        return None

    def merit(candidate: Candidate) -> tuple[float, float]:
        metric, loss = (candidate.spread("dev", name).mean for name in (None, "loss"))
        return -math.inf if metric is None else metric, -math.inf if loss is None else -loss

    return max((candidate for candidate in candidates if len(candidate.runs) == most), key=merit)


def _difference(one: Candidate, other: Candidate) -> Difference:
    ours, theirs = (
        {run.run.seed: run.measured("eval", run.metric) for run in candidate.runs} for candidate in (one, other)
    )
    both = [seed for seed in ours if ours[seed] is not None and theirs.get(seed) is not None]
    spread = Spread.of([ours[seed] - theirs[seed] for seed in both])
    if spread.mean is not None and spread.mean < 0:
        return Difference(other.method.name, one.method.name, Spread(-spread.mean, spread.deviation, spread.n))
    return Difference(one.method.name, other.method.name, spread)


def _same_curve(one: Candidate, other: Candidate) -> SameCurve:
    ours, theirs = ({run.run.seed: run.step_loss_digest for run in candidate.runs} for candidate in (one, other))
    by_seed = {seed: ours[seed] == theirs[seed] for seed in ours if seed in theirs}
    return SameCurve(one.method.name, other.method.name, by_seed)


def to_json(report: Report) -> dict:
    """Everything, for `comparison.json`. What differs from one execution to the next is under the name "measured"."""
    failed = {run.name: ended for run, ended in report.failures}
    return _finite(
        {
            "format": FORMAT,
            "metric": report.metric,
            "seeds": report.seeds,
            "methods": {candidate.method.name: _about(candidate) for candidate in report.chosen},
            "settings": [
                {"method": candidate.method.name, "setting": candidate.setting, "chosen": candidate in report.chosen}
                | {"unfinished": candidate.unfinished, "development": candidate.spread("dev").to_json()}
                for candidate in report.candidates
            ],
            "differences": [
                {"method": difference.method, "over": difference.other, **difference.spread.to_json()}
                for difference in report.differences
            ],
            "identical_step_losses": [
                {
                    "methods": [same.method, same.other],
                    "by_seed": {str(seed): equal for seed, equal in same.by_seed.items()},
                }
                for same in report.same_curves
            ],
            "runs": [_about_run(run) for candidate in report.candidates for run in candidate.runs],
            "unfinished_runs": [
                {"run": name, "exit_status": ended.exit_status, "last_lines": ended.last_lines}
                for name, ended in failed.items()
            ],
        }
    )


def _about(candidate: Candidate) -> dict:
    sets = {"held_out": "eval", "development": "dev"}
    return {
        "setting": candidate.setting,
        "flags": candidate.method.flags,
        "trainer": candidate.method.trainer,
        "seeds": [run.run.seed for run in candidate.runs],
        "unfinished": candidate.unfinished,
        **{name: candidate.spread(examples).to_json() for name, examples in sets.items()},
        **{f"{name}_loss": candidate.spread(examples, "loss").to_json() for name, examples in sets.items()},
        "zero_shot": candidate.spread("eval", when="zero_shot").to_json(),
        "forwards": candidate.runs[0].forwards,
        "measured": {
            "steps_per_second": Spread.of([run.steps_per_second for run in candidate.runs]).to_json(),
            "peak_memory_bytes": Spread.of([run.peak_memory for run in candidate.runs]).to_json(),
        },
    }


def _about_run(run: FinishedRun) -> dict:
    metrics = run.metrics
    counted = ("steps", "epochs", "merges", "best_round", "skipped_steps", "trainable_parameters")
    return {
        "run": run.run.name,
        "method": run.run.method.name,
        "seed": run.run.seed,
        "setting": run.run.setting,
        "results": metrics["results"],
        **{name: metrics["training"].get(name) for name in counted},
        "estimator": metrics["training"].get("estimator"),
        "forwards": run.forwards,
        "step_loss_sha256": run.step_loss_digest,
        "evaluations": run.evaluations,
        "merged": run.merges,
        "configuration": run.run.configuration,
        "environment": metrics["environment"],
        "measured": {
            "seconds": metrics["seconds"],
            "steps_per_second": run.steps_per_second,
            "peak_memory_bytes": run.peak_memory,
        },
    }


def _finite(value: object) -> object:
    """`value` with None for every number that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
