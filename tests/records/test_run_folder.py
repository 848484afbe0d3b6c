"""What a run leaves in its folder, and how a folder that is used already is treated."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import xgblora
from xgblora.boosting import Ledger
from xgblora.errors import InputError
from xgblora.records.run_folder import RunFolder, refuse_unwritable, unused_folder
from xgblora.scoring import Collator, OptionScorer, encode
from xgblora.tape import Tape
from xgblora.tasks import load_task, sample_sets

FILES = {
    "base.json",
    "boosters.safetensors",
    "eval_loss.jsonl",
    "loss.png",
    "merges.jsonl",
    "metrics.json",
    "model",
    "predictions.jsonl",
    "step_loss.csv",
    "tape.bin",
    "train.log",
    "training_loss.jsonl",
}


def test_a_run_leaves_its_files_and_no_temporary_ones(merged_by_steps):
    assert {path.name for path in merged_by_steps.folder.iterdir()} == FILES


def test_step_loss_has_one_line_a_step_in_full_precision(merged_by_steps):
    losses = merged_by_steps.losses
    assert [int(step) for step, _ in losses] == list(range(1, 41))
    for _, loss in losses:
        # an fp32 number, written so that reading gives it back
        assert repr(float(loss)) == loss
        assert float(np.float32(float(loss))) == float(loss)


def test_training_log_is_the_mean_of_the_steps_since_the_last_entry(merged_by_steps):
    losses = [float(loss) for _, loss in merged_by_steps.losses]
    entries = merged_by_steps.entries("training_loss.jsonl")
    assert [entry["step"] for entry in entries] == [5, 10, 15, 20, 25, 30, 35, 40]
    for entry in entries:
        assert entry["loss"] == pytest.approx(np.mean(losses[entry["step"] - 5 : entry["step"]]), rel=1e-6)
        assert entry["epoch"] == pytest.approx(entry["step"] / 3)
        assert entry["learning_rate"] == 1e-2


def test_evaluations_have_step_epoch_loss_learning_rate_and_accuracy(merged_by_steps):
    entries = merged_by_steps.entries("eval_loss.jsonl")
    assert [entry["step"] for entry in entries] == [10, 20, 30, 40]
    for entry in entries:
        assert entry["epoch"] == pytest.approx(entry["step"] / 3)
        assert entry["eval_loss"] > 0
        assert 0 <= entry["eval_accuracy"] <= 1
        assert entry["learning_rate"] == 1e-2


def test_metrics_hold_results_and_the_resolved_configuration(merged_by_steps):
    metrics = merged_by_steps.metrics
    for when in ("zero_shot", "trained"):
        assert metrics["results"][when]["dev"]["examples"] == 4
        assert metrics["results"][when]["eval"]["examples"] == 6
        assert 0 <= metrics["results"][when]["eval"]["accuracy"] <= 1
    configuration = metrics["configuration"]
    assert configuration["method"] == "xgblora"
    assert configuration["rank"] == 1
    assert configuration["alpha"] == configuration["scaling"] == 16.0
    assert configuration["merge_rule"] == "merge every 10 steps"
    assert configuration["seed"] == 3
    assert configuration["learning_rate"] == 1e-2
    assert metrics["training"]["steps"] == 40
    assert metrics["training"]["steps_per_second"] == pytest.approx(40 / metrics["training"]["seconds"], rel=0.01)
    assert metrics["training"]["estimator"] == {"name": "two_sided", "directions": 1, "forwards": 2}
    assert metrics["peak_memory_bytes"] > 1 << 20


def test_metrics_say_how_often_a_step_runs_a_batch(run):
    short = ("--max_steps=3", "--num_dev=0")
    one_sided = run(*short, "--zo_two_sided=false", "--zo_directions=4")
    assert one_sided.metrics["training"]["estimator"] == {"name": "one_sided", "directions": 4, "forwards": 5}
    assert run(*short, "--trainer=regular").metrics["training"]["estimator"] is None


def test_dev_loss_after_training_is_the_last_evaluation(merged_by_steps):
    last = merged_by_steps.entries("eval_loss.jsonl")[-1]
    assert merged_by_steps.metrics["results"]["trained"]["dev"]["loss"] == pytest.approx(last["eval_loss"], rel=1e-6)


def test_the_curve_is_a_png_that_opens(merged_by_steps):
    from matplotlib import image

    pixels = image.imread(merged_by_steps.folder / "loss.png", format="png")
    assert pixels.shape[0] > 300
    assert pixels.std() > 0


def test_train_log_holds_the_block_and_the_table(merged_by_steps):
    log = merged_by_steps.log
    assert sum(line.startswith("--- xgblora ---") for line in log) == 1
    assert sum(line.startswith("accuracy, development set") for line in log) == 1
    assert sum(line.startswith("accuracy, held-out set") for line in log) == 1
    assert f"metrics: {merged_by_steps.folder / 'metrics.json'}" in log


@pytest.mark.parametrize("fixture", ["merged_by_steps", "merged_by_epochs"])
def test_base_and_ledger_give_the_saved_weights_bit_for_bit(request, fixture, tiny_model_folder):
    run = request.getfixturevalue(fixture)
    ledger = Ledger.load(run.folder / "boosters.safetensors")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    adapters = xgblora.attach(base, alpha=16.0, seed=3)
    xgblora.Booster(adapters).replay(ledger)
    xgblora.detach(base, fold=False)
    saved = AutoModelForCausalLM.from_pretrained(run.folder / "model").state_dict()
    before = AutoModelForCausalLM.from_pretrained(tiny_model_folder).state_dict()
    rebuilt = base.state_dict()
    assert rebuilt.keys() == saved.keys()
    for name, weight in saved.items():
        assert torch.equal(rebuilt[name], weight), name
        adapted = name.endswith(("q_proj.weight", "v_proj.weight"))
        assert torch.equal(before[name], weight) != adapted, name


@pytest.mark.parametrize("method", ["xgblora", "lora of rank 4"])
def test_the_saved_model_has_the_results_in_metrics(run, merged_by_steps, method, review_folder):
    trained = merged_by_steps if method == "xgblora" else run("--lora", "--lora_r=4", "--max_steps=8")
    folder = trained.folder / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    sets = sample_sets(load_task("SST2", str(review_folder)), num_train=12, num_dev=4, num_eval=6, seed=3)
    for name, samples in (("dev", sets.dev), ("eval", sets.evaluation)):
        examples = [encode(sample, tokenizer, max_length=64) for sample in samples]
        batch = Collator(tokenizer.pad_token_id)(examples)
        with torch.no_grad():
            scores = OptionScorer(model).scores(model, batch)
        reported = trained.metrics["results"]["trained"][name]
        assert (scores.argmax(dim=1) == batch["label"]).double().mean().item() == reported["accuracy"]
        loss = -scores.gather(1, batch["label"].unsqueeze(1)).mean()
        assert loss.item() == pytest.approx(reported["loss"], rel=1e-5)


def test_the_same_flags_give_the_same_curve_and_weights(merged_by_steps, run_in, tmp_path):
    again = run_in(tmp_path / "again", "--xgblora", "--xgblora_steps_per_iteration=10", "--max_steps=40")
    assert again.losses == merged_by_steps.losses
    for name, weight in merged_by_steps.weights().items():
        assert torch.equal(again.weights()[name], weight)


def test_another_seed_gives_another_curve(run):
    first, second = (run("--max_steps=3", "--num_dev=0", f"--seed={seed}") for seed in (0, 1))
    assert first.losses != second.losses


def test_lora_of_rank_4_trains(run):
    lora = run("--lora", "--lora_r=4", "--max_steps=8")
    assert "Actual rank used: 4" in lora.log
    assert "Scaling (alpha/r): 4.0" in lora.log
    # 4 layers of 32 x 32
    assert lora.metrics["training"]["trainable_parameters"] == 4 * 4 * (32 + 32)
    assert not any("rank 1" in line for line in lora.log)


def test_boosting_with_a_rank_other_than_1_warns_and_uses_1(run):
    log = run("--xgblora", "--lora_r=8", "--max_steps=3", "--num_dev=0").log
    assert "--lora_r 8: XGBLoRA always uses rank 1; using 1" in log
    assert "Actual rank used: 1 (forced to 1 for XGBLoRA)" in log
    assert "Scaling (alpha/r): 16.0" in log


def test_flags_of_the_other_trainer_say_that_they_have_no_effect(run, merged_by_steps):
    given = ("--optim=adafactor", "--max_grad_norm=0.5", "--zo_eps=0.01", "--max_steps=3", "--num_dev=0")
    zeroth_order, first_order = run(*given), run(*given, "--trainer=regular")
    assert "--optim adafactor has no effect with --trainer zo: --zo_optimizer chooses what steps" in zeroth_order.log
    assert "--max_grad_norm 0.5 has no effect with --trainer zo: there are no gradients to clip" in zeroth_order.log
    reason = "backpropagation computes the gradient, nothing is estimated"
    idle = [line for line in (*first_order.log, *merged_by_steps.log) if "has no effect" in line]
    assert idle == [f"--zo_eps 0.01 has no effect with --trainer regular: {reason}"]


def test_trainer_none_measures_and_trains_nothing(run, merged_by_steps):
    zero_shot = run("--trainer=none")
    assert {path.name for path in zero_shot.folder.iterdir()} == {"metrics.json", "predictions.jsonl", "train.log"}
    assert zero_shot.metrics["results"] == {"zero_shot": merged_by_steps.metrics["results"]["zero_shot"]}
    assert "training" not in zero_shot.metrics
    assert "Method: evaluation of the model as it is, zero-shot" in zero_shot.log
    said = ("dapter", "erg", "rank", "Alpha", "round")
    assert [line for line in zero_shot.log if any(word in line for word in said)] == []


def test_first_order_training_lowers_the_loss(run):
    losses = [float(loss) for _, loss in run("--trainer=regular", "--max_steps=12", "--num_dev=0").losses]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1


def test_classification_trains_on_all_candidates(run):
    trained = run("--trainer=regular", "--max_steps=12", "--objective=classification", "--learning_rate=3e-2")
    assert "Loss: cross-entropy over the candidates" in trained.log
    results = trained.metrics["results"]
    assert results["trained"]["dev"]["loss"] != results["zero_shot"]["dev"]["loss"]
    losses = [float(loss) for _, loss in trained.losses]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


@pytest.mark.parametrize(
    "objective, loss", [("accuracy", "1 - accuracy (no gradient)"), ("language_model", "loss of the whole right text")]
)
def test_an_objective_is_what_is_trained_and_evaluated(run, objective, loss):
    trained = run(
        f"--objective={objective}", "--zo_eps=0.1", "--max_steps=4", "--eval_steps=4", "--gradient_accumulation_steps=2"
    )
    assert f"Loss: {loss}" in trained.log
    (entry,) = trained.entries("eval_loss.jsonl")
    measured = trained.metrics["results"]["trained"]["dev"]
    assert entry["eval_loss"] == pytest.approx(measured["loss"], rel=1e-5)
    assert entry["eval_accuracy"] == measured["accuracy"]
    if objective == "accuracy":
        assert entry["eval_loss"] == 1 - entry["eval_accuracy"]
        # eight examples a step, on both sides
        assert all(float(value) * 16 == int(float(value) * 16) for _, value in trained.losses)
    else:
        nll = run("--trainer=none").metrics["results"]["zero_shot"]["dev"]
        before = trained.metrics["results"]["zero_shot"]["dev"]
        assert before["accuracy"] == nll["accuracy"]
        assert before["loss"] != nll["loss"]


def test_bfloat16_keeps_adapters_and_curve_in_fp32_and_saves_bfloat16(run):
    trained = run("--dtype=bfloat16", "--xgblora_steps_per_iteration=4", "--max_steps=8", "--num_dev=0")
    assert {weight.dtype for weight in trained.weights().values()} == {torch.bfloat16}
    boosters = Ledger.load(trained.folder / "boosters.safetensors").boosters
    assert {booster.adapters.dtype for booster in boosters} == {torch.float32}
    assert trained.merge_lines == ["step 4", "step 8"]


def test_no_development_set_means_no_evaluation_during_training(run):
    trained = run("--max_steps=3", "--num_dev=0", "--seed=0")
    assert trained.entries("eval_loss.jsonl") == []
    assert set(trained.metrics["results"]["trained"]) == {"eval"}


def test_a_model_that_is_not_wanted_is_not_saved(run):
    trained = run("--max_steps=3", "--num_dev=0", "--save_model=false")
    assert not (trained.folder / "model").exists()


class TestUsedFolder:
    """A folder that holds a run already."""

    def test_a_second_run_is_refused_and_overwrite_starts_afresh(self, run_in, tmp_path, capsys):
        flags = ("--max_steps=3", "--num_dev=0")
        run_in(tmp_path / "run", *flags, "--xgblora")
        before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
        with pytest.raises(SystemExit) as exit:
            run_in(tmp_path / "run", *flags, "--lora")
        assert exit.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(tmp_path / "run") in line
        assert "--overwrite" in line
        assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before

        overwritten = run_in(tmp_path / "run", *flags, "--lora", "--overwrite")
        assert overwritten.metrics["configuration"]["method"] == "lora"
        assert len(overwritten.losses) == 3
        assert sum(line.startswith("--- xgblora ---") for line in overwritten.log) == 1
        # the ledger and the tape are of this run
        ledger = Ledger.load(tmp_path / "run" / "boosters.safetensors")
        assert [booster.step for booster in ledger.boosters] == [3]
        assert Tape.load(tmp_path / "run" / "tape.bin").header.origin == ledger.origin

    def test_a_file_in_the_place_of_the_folder_is_refused(self, tmp_path):
        (tmp_path / "run").write_text("")
        with pytest.raises(InputError, match="is a file"):
            refuse_unwritable(tmp_path / "run")

    def test_an_empty_folder_and_one_with_other_files_are_fine(self, tmp_path):
        (tmp_path / "notes.txt").write_text("")
        RunFolder(tmp_path).refuse_if_used()

    def test_names_without_output_dir_are_numbered_from_2(self, run_in, train_tiny, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for _ in range(2):
            train_tiny(None, "--trainer=none")
        names = sorted(path.name for path in (tmp_path / "runs").iterdir())
        assert names == ["tiny-opt-SST2-xgblora-none-seed3", "tiny-opt-SST2-xgblora-none-seed3-2"]
        assert [path.name for path in tmp_path.iterdir()] == ["runs"]
        configuration = json.loads((tmp_path / "runs" / names[1] / "metrics.json").read_text())["configuration"]
        assert configuration["output_dir"] == f"runs/{names[1]}"


def test_unused_folder_counts_on(tmp_path):
    for expected in ("x", "x-2", "x-3"):
        folder = unused_folder(tmp_path, "x")
        assert folder.name == expected
        folder.mkdir()
