"""The demonstration: a small model and a review data set that ship with the package (made by scripts/make_demo.py)."""

from pathlib import Path

_FOLDER = Path(__file__).parent
# a step moves every weight at once: the rate of adapters (2e-3) diverges
LEARNING_RATE_OF_FULL_PARAMETERS = 1e-4


def flags() -> dict:
    """Flags of `xgblora-train` for the demonstration, with which it gains well over 20 points in under a minute."""
    return {
        "model_name": str(_FOLDER / "opt-demo"),
        "task_name": "SST2",
        "data_dir": str(_FOLDER / "reviews"),
        # the same everywhere, whatever the machine has for 16 bits
        "dtype": "float32",
        "num_train": 800,
        "num_dev": 200,
        "objective": "classification",
        "xgblora_steps_per_iteration": 100,
        "xgblora_merge_frequency": 0,
        "learning_rate": 2e-3,
        "max_steps": 2400,
        "eval_steps": 300,
    }
