"""scripts/compare_tasks.py: comparisons of several tasks side by side."""

from pathlib import Path

import pytest

from tests.fixtures.files import imported

PATH = Path(__file__).parents[2] / "scripts" / "compare_tasks.py"


@pytest.fixture(scope="module")
def script():
    with imported(PATH) as module:
        yield module


def run_of(method, seed, accuracy, setting=None, losses=()):
    run = {"method": method, "seed": seed, "setting": setting or {}, "forwards": 40, "steps": 20}
    run["results"] = {"trained": {"eval": {"accuracy": accuracy}}}
    run["evaluations"] = [{"step": 10 * number, "loss": loss} for number, loss in enumerate(losses, start=1)]
    return run


@pytest.fixture
def task():
    unfinished = {"method": "ours", "seed": 2, "setting": {}}
    return {
        "title": "model on task",
        "metric": "accuracy",
        "methods": {"ours": {"setting": {}, "held_out_loss": {"mean": 0.5}}, "good": {"setting": {}}, "bad": {}},
        "runs": [
            run_of("ours", 0, 0.80, losses=[0.9, 0.5]),
            run_of("ours", 1, 0.90, losses=[0.7, 0.3]),
            run_of("ours", 0, 0.10, setting={"lora_alpha": 1}, losses=[9.0]),
            unfinished,
            run_of("good", 0, 0.75),
            run_of("good", 1, 0.80),
            run_of("good", 2, 0.85),
        ],
    }


def test_the_first_method_leads_the_best_other_on_the_seeds_of_both(script, task):
    assert script.table({"one": task}, ["ours", "good", "bad"]) == [
        "| | model on task |",
        "| --- | --- |",
        "| ours | 85.0 ± 5.0% (2), loss 0.500 |",
        "| good | 80.0 ± 2.9% (3) |",
        "| bad |  |",
        "| ours leads by | +7.5 ± 2.5 over good |",
    ]


def test_losses_are_means_over_seeds_by_forwards(script, task):
    assert script.losses_by_forwards(task, "ours") == pytest.approx({20.0: 0.8, 40.0: 0.4})
