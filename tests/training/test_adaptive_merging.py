"""--xgblora_adaptive_merge: rounds that end by their held-out loss and merge their best adapter."""

import pytest
import torch

from xgblora.boosting import Ledger
from xgblora.cli import replay
from xgblora.errors import InputError
from xgblora.training import XGBLoRAArguments, XGBLoRATrainer

ADAPTIVE = ("--xgblora_adaptive_merge", "--eval_steps=2")
# steps that are too large now and then: some rounds improve and others do not; 9 is no multiple of eval_steps, and lets
# no run have fewer than three rounds, whatever its machine makes of such steps
ROUGH = (
    *(*ADAPTIVE, "--learning_rate=0.1", "--max_steps=24", "--xgblora_adaptive_max_steps=9"),
    *("--staged_eval", "--save_strategy=steps", "--save_steps=4"),
)
FIRST_ORDER = (
    *(*ADAPTIVE, "--trainer=regular", "--learning_rate=0.1", "--max_steps=24", "--xgblora_adaptive_patience=1"),
    "--xgblora_adaptive_max_steps=9",
)


def evaluations(run) -> dict[int, float]:
    return {entry["step"]: entry["eval_loss"] for entry in run.entries("eval_loss.jsonl")}


@pytest.mark.parametrize("flags", [ROUGH, FIRST_ORDER], ids=["zo", "regular"])
def test_every_round_merges_its_best_evaluation_or_its_start(run, flags):
    losses, start, start_loss, improved = evaluations(run(*flags)), 0, float("inf"), []
    merges = run(*flags).entries("merges.jsonl")
    assert len(merges) > 2
    assert merges[-1]["step"] == 24, "the last round ends with the run"
    for merge in merges:
        in_round = {step: loss for step, loss in losses.items() if start < step <= merge["step"]}
        best = min(in_round, key=in_round.get)
        improved.append(in_round[best] < start_loss and merge["kept_step"] > start)
        if improved[-1]:
            assert (merge["kept_step"], merge["held_out_loss"]) == (best, in_round[best])
        elif start:
            assert merge["held_out_loss"] == start_loss <= min(in_round.values())
        start, start_loss = merge["step"], merge["held_out_loss"]
    assert any(improved)
    assert flags is FIRST_ORDER or not all(improved)


def test_the_trained_model_has_the_held_out_loss_of_the_last_merge(run):
    for flags in (ROUGH, FIRST_ORDER):
        trained = run(*flags).metrics["results"]["trained"]["dev"]["loss"]
        assert trained == pytest.approx(run(*flags).entries("merges.jsonl")[-1]["held_out_loss"], rel=1e-5)


def test_a_round_that_reaches_its_limit_is_evaluated_there(run):
    flags = (*ADAPTIVE, "--trainer=regular", "--max_steps=12", "--xgblora_adaptive_max_steps=5")
    assert [entry["step"] for entry in run(*flags).entries("merges.jsonl")] == [5, 10, 12]
    assert list(evaluations(run(*flags))) == [2, 4, 5, 6, 8, 10, 12]


def test_the_log_says_the_rule_and_which_adapter_was_merged(run):
    log, merges = run(*ROUGH).log, run(*ROUGH).entries("merges.jsonl")
    (rule,) = {merge["rule"] for merge in merges}
    assert rule.startswith("merge the round's best when the held-out loss stops improving (EMA 0.5, patience 2, ")
    assert f"Merge rule in force: {rule}" in log
    assert sum("xgblora_merge_frequency=1 is ignored: adaptive merging" in line for line in log) == 1
    for line, merge in zip(run(*ROUGH).merge_lines, merges, strict=True):
        assert line.startswith(f"step {merge['step']} (")
        assert f"(adapter of step {merge['kept_step']}, " in line or "(nothing better than the round's start, " in line
        assert f"held-out loss {merge['held_out_loss']:.4f}, smoothed " in line


def test_an_empty_booster_is_one_whose_b_is_zero(run):
    ledger = Ledger.load(run(*ROUGH).folder / "boosters.safetensors")
    for line, booster in zip(run(*ROUGH).merge_lines, ledger.boosters, strict=True):
        changes = any(bool(slot.views(booster.adapters.unsqueeze(0))[1].any()) for slot in ledger.slots)
        assert changes == ("adapter of step" in line)


def test_the_tape_trains_the_same_weights_again(run, capsys):
    replay.main([str(run(*ROUGH).folder), "--save_model=false"])
    assert "verified" in capsys.readouterr().out.splitlines()[-1]


def test_a_dry_run_says_how_many_merges_there_may_be(run_in, tmp_path, capsys):
    run_in(tmp_path / "dry", *ADAPTIVE, "--max_steps=24", "--xgblora_adaptive_patience=3", "--dry_run")
    assert "Merges to come: at most 4\n" in capsys.readouterr().out


# within a round, at a merge, at the end
@pytest.mark.parametrize("step", [8, 16, 24])
def test_a_resumed_run_is_the_same_run(run, run_in, tmp_path, step):
    whole = run(*ROUGH, rendered=True)
    checkpoint = whole.folder / f"checkpoint-{step}"
    resumed = run_in(tmp_path / "r", *ROUGH, f"--resume_from_checkpoint={checkpoint}", rendered=True)
    for name in ("merges.jsonl", "tape.bin", "boosters.safetensors", "rounds.png"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    for name, weight in resumed.weights().items():
        assert torch.equal(weight, whole.weights()[name]), name


def test_where_starts_are_measured_each_is_a_rounds_first_candidate(run, run_in, tmp_path, tiny_model_folder):
    from transformers import AutoModelForCausalLM

    from xgblora.replaying import replay
    from xgblora.tape import MergeRecord, StartRecord, Tape

    flags = (
        *("--xgblora_adaptive_merge", "--xgblora_reinit=residual", "--max_steps=7", "--eval_steps=1"),
        *("--xgblora_adaptive_patience=1", "--learning_rate=0.3", "--save_strategy=steps", "--save_steps=1"),
    )
    whole = run(*flags)
    tape = Tape.load(whole.folder / "tape.bin")
    kinds = [type(record) for record in tape.records() if isinstance(record, MergeRecord | StartRecord)]
    assert kinds.count(MergeRecord) > 2
    # the run's last merge is followed by no step
    assert kinds == [StartRecord, *[MergeRecord, StartRecord] * (kinds.count(MergeRecord) - 1), MergeRecord]
    _, verified = replay(AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32), tape)
    assert verified
    for merge in whole.entries("merges.jsonl")[:2]:
        step = merge["step"]
        checkpoint = whole.folder / f"checkpoint-{step}"
        resumed = run_in(tmp_path / str(step), *flags, f"--resume_from_checkpoint={checkpoint}")
        assert (resumed.folder / "tape.bin").read_bytes() == (whole.folder / "tape.bin").read_bytes()


def test_a_checkpoint_of_another_rule_is_refused(run, run_in, tmp_path, capsys):
    whole = run("--xgblora_steps_per_iteration=3", "--max_steps=4", "--save_strategy=steps", "--save_steps=2")
    with pytest.raises(SystemExit):
        run_in(tmp_path / "r", *ADAPTIVE, f"--resume_from_checkpoint={whole.folder / 'checkpoint-2'}")
    (line,) = capsys.readouterr().err.splitlines()
    assert "xgblora_adaptive_merge is False there and True here" in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--xgblora_steps_per_iteration=5"], "--xgblora_adaptive_merge and --xgblora_steps_per_iteration 5: choose"),
        (["--eval_strategy=no"], "xgblora_adaptive_merge=True: needs --eval_strategy steps and --eval_steps, not no"),
        (["--num_dev=0"], "num_dev=0: xgblora_adaptive_merge needs development examples"),
        (["--lora"], "xgblora_adaptive_merge=True: plain LoRA has no rounds"),
        (["--xgblora_adaptive_ema=1"], "xgblora_adaptive_ema=1.0: must be 0 or more and below 1"),
    ],
)
def test_flags_that_contradict_it_are_refused_in_one_line(run_in, tmp_path, capsys, flags, said):
    with pytest.raises(SystemExit) as exit:
        run_in(tmp_path / "run", *ADAPTIVE, *flags)
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("held_out", [None, {"a": [1], "b": [2]}])
@pytest.mark.parametrize("flag", [{"xgblora_adaptive_merge": True}, {"early_stopping_rounds": 2}])
def test_from_python_it_needs_one_held_out_set(make_opt, tmp_path, held_out, flag):
    args = XGBLoRAArguments(output_dir=str(tmp_path), use_cpu=True, **flag)
    if held_out is None:
        # transformers' own refusal comes first otherwise, and says the same
        args.eval_strategy = "no"
    with pytest.raises(InputError, match=f"^eval_dataset: {next(iter(flag))} needs one development set"):
        XGBLoRATrainer(make_opt(), args, train_dataset=[{}], eval_dataset=held_out)
