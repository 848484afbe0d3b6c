"""What the trial at the start costs of a short run, in CPU time.

    python scripts/trial_cost.py --model_name MODEL --data_dir DATA/sst2

All flags are those of xgblora-train; few steps are taken, and their time is told for 1,000.
"""

import sys
import tempfile
import time
from collections import defaultdict

from xgblora.adapters import targets
from xgblora.cli.train import main as train
from xgblora.scoring.likelihood import _Forwards
from xgblora.scoring.option_scorer import OptionScorer
from xgblora.training.trainer import XGBLoRATrainer
from xgblora.zo import ZeroOrder

STEPS, OF_A_RUN = 40, 1000
SPENT: dict[str, list[float]] = defaultdict(list)


def timed(owner: object, name: str, called: str) -> None:
    """Let each call of `owner.name` add its CPU time to those that are `called` so."""
    original = getattr(owner, name)

    def run(*args, **kwargs):
        begun = time.process_time()
        try:
            return original(*args, **kwargs)
        finally:
            SPENT[called].append(time.process_time() - begun)

    setattr(owner, name, run)


def main() -> None:
    timed(targets, "faults_when_called", "trial: layers that are called")
    timed(targets, "faults_when_changed", "trial: layers that act")
    timed(OptionScorer, "_try", "trial: scores in training")
    timed(_Forwards, "_tried", "trial: scores in an evaluation")
    timed(ZeroOrder, "_stacks_right", "trial: signs")
    timed(XGBLoRATrainer, "train", "steps")
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--max_steps={STEPS}", "--num_eval=64", "--eval_strategy=no", "--save_model=false"]
        train([*sys.argv[1:], *flags, f"--output_dir={folder}/run"])
    # the first batch is run both ways in the first step
    run = OF_A_RUN * (sum(SPENT.pop("steps")) - sum(SPENT["trial: signs"])) / STEPS
    trial = sum(map(sum, SPENT.values()))
    for called, times in SPENT.items():
        print(f"{called}: {sum(times):.2f} s in {len(times)} calls")
    print(f"{trial:.2f} s of trials beside {run:.1f} s of {OF_A_RUN} steps: {100 * trial / (trial + run):.2f}%")


if __name__ == "__main__":
    main()
