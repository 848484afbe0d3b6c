"""Whole runs on the shared models and data, which are real."""

import json

import pytest


@pytest.fixture
def run_shared(shared_model, shared_data, run_in, tmp_path):
    """A function `(model, *flags)` that runs on SST-2 with a shared model."""

    def run(name: str, *flags: object):
        folders = (f"--model_name={shared_model(name)}", f"--data_dir={shared_data('sst2')}")
        return run_in(tmp_path / "run", *folders, *flags)

    return run


def test_zero_shot_accuracy_of_opt_mini_is_the_published_one(run_shared):
    """0.512 on the 872 reviews of the validation split, by an independent implementation."""
    run = run_shared("opt-mini", "--trainer=none", "--num_dev=0", "--num_eval=872", "--per_device_eval_batch_size=64")
    (measured,) = run.metrics["results"]["zero_shot"].values()
    assert measured["examples"] == 872
    assert measured["accuracy"] == pytest.approx(0.512, abs=0.0006)


def test_a_few_first_order_steps_on_opt_mini_learn(run_shared):
    run = run_shared(
        "opt-mini",
        "--trainer=regular",
        "--objective=classification",
        "--learning_rate=3e-3",
        "--max_steps=24",
        "--xgblora_steps_per_iteration=8",
        "--num_train=192",
        "--num_dev=64",
        "--num_eval=128",
        "--per_device_train_batch_size=16",
        "--eval_strategy=no",
    )
    results = run.metrics["results"]
    assert results["trained"]["eval"]["loss"] < results["zero_shot"]["eval"]["loss"] - 0.02
    assert run.merge_lines == ["step 8", "step 16", "step 24"]


def test_a_llama_with_options_of_several_tokens_trains(run_shared):
    run = run_shared("stories260K", "--max_steps=6", "--xgblora_steps_per_iteration=3", "--objective=classification")
    assert run.merge_lines == ["step 3", "step 6"]
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert config["model_type"] == "llama"
