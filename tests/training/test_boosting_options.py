"""How rounds start and end and which layers they train, from the command line."""

import pytest
import torch

from xgblora.boosting import Ledger
from xgblora.boosting.shrinkage import Shrinkage
from xgblora.training import XGBLoRAArguments

COMMON = ("--xgblora", "--xgblora_steps_per_iteration=3", "--max_steps=7", "--eval_steps=3")
FIXED = (*COMMON, "--xgblora_shrinkage=0.5", "--xgblora_reinit=keep_a")
SEARCHED = (*COMMON, "--xgblora_shrinkage=line_search", "--xgblora_colsample=0.5")


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        (FIXED, ("Reinitialisation: keep_a", "Shrinkage: 0.5", "Layers a round trains (colsample): 4 of 4")),
        (
            SEARCHED,
            (
                "Reinitialisation: kaiming",
                "Shrinkage: line search over 0.25, 0.5, 0.75, 1.0 by held-out loss",
                "Layers a round trains (colsample): 2 of 4",
            ),
        ),
    ],
)
def test_the_block_says_how_rounds_start_and_end(run, flags, lines):
    log = run(*flags).log
    assert all(log.count(line) == 1 for line in lines)


def test_a_merge_is_shrunken_and_the_adapter_left_at_the_end_is_not(run):
    done = run(*FIXED)
    assert [entry["scale"] for entry in done.entries("merges.jsonl")] == [8.0, 8.0]
    scales = [booster.scale for booster in Ledger.load(done.folder / "boosters.safetensors").boosters]
    assert scales == [8.0, 8.0, 16.0]
    said = "XGBLoRA: Shrinkage 0.5: merging at scale 8 instead of 16, which changes the model's function"
    assert done.log.count(said) == 2


def test_an_evaluation_at_the_step_of_a_merge_measures_what_was_merged(run):
    done = run(*SEARCHED)
    searches = [line for line in done.log if line.startswith("XGBLoRA: Held-out loss by shrinkage: ")]
    evaluations = {entry["step"]: entry["eval_loss"] for entry in done.entries("eval_loss.jsonl")}
    merges = done.entries("merges.jsonl")
    assert len(searches) == len(merges) == 2
    for search, merge in zip(searches, merges, strict=True):
        losses = dict(pair.split(": ") for pair in search.split("shrinkage: ")[1].split(", "))
        chosen = losses[f"{merge['scale'] / 16:g}"]
        assert chosen == min(losses.values(), key=float)
        assert evaluations[merge["step"]] == pytest.approx(float(chosen), abs=6e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--xgblora_reinit=hot", "invalid choice: 'hot'"),
        ("--xgblora_shrinkage=0", "xgblora_shrinkage=0: must be a number above 0 and at most 1, or line_search"),
        ("--xgblora_colsample=1.5", "xgblora_colsample=1.5: must be above 0 and at most 1"),
        ("--lora --lora_init=warm", "invalid choice: 'warm'"),
        ("--xgblora_layers=0.5", "xgblora_layers=0.5: must be START:STOP, such as 0.5:1.0 for the upper half"),
        ("--xgblora_layers=0:0.1", "xgblora_layers=0.0:0.1: none of the 4 target layers lies there"),
        (
            "--objective=accuracy --xgblora_reinit=residual",
            "xgblora_reinit=residual: needs a gradient, objective=accuracy has none; use --xgblora_reinit data",
        ),
        ("--lora --xgblora_reinit=warm", "xgblora_reinit=warm: plain LoRA has no rounds; use --xgblora"),
        ("--lora --xgblora_shrinkage=0.5", "xgblora_shrinkage=0.5: plain LoRA has no rounds; use --xgblora"),
        ("--lora --xgblora_colsample=0.5", "xgblora_colsample=0.5: plain LoRA has no rounds; use --xgblora"),
        (
            "--xgblora_reinit=warm --xgblora_shrinkage=0.5",
            "xgblora_reinit=warm: the base takes back all that a round started with; use --xgblora_shrinkage 1.0",
        ),
        (
            "--xgblora_shrinkage=line_search --num_dev=0",
            "num_dev=0: xgblora_shrinkage=line_search needs development examples",
        ),
    ],
)
def test_bad_flags_are_refused_in_one_line(run_in, tmp_path, capsys, flags, said):
    with pytest.raises(SystemExit) as exit:
        run_in(tmp_path / "run", *flags.split())
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()


def test_plain_lora_takes_the_defaults_by_any_spelling(tmp_path):
    args = XGBLoRAArguments(output_dir=str(tmp_path), lora=True, xgblora_shrinkage="1", xgblora_colsample=1)
    assert args.shrinkage == Shrinkage()


@pytest.mark.parametrize(("start", "trainer"), [("residual", "zo"), ("residual", "regular"), ("data", "zo")])
def test_without_merges_xgblora_and_lora_of_one_measured_start_are_one_run(run, start, trainer):
    common = (f"--trainer={trainer}", "--max_steps=5", "--target_modules=all-linear", "--num_dev=0")
    boosting = run(*common, f"--xgblora_reinit={start}", "--xgblora_merge_frequency=0")
    lora = run(*common, "--lora", f"--lora_init={start}")
    ours, theirs, plain = (
        (done.folder / "step_loss.csv").read_bytes() for done in (boosting, lora, run(*common, "--lora"))
    )
    assert ours == theirs != plain
    ledgers = [Ledger.load(done.folder / "boosters.safetensors") for done in (boosting, lora)]
    assert [list(ledger.measured) for ledger in ledgers] == [[0], [0]]
    assert torch.equal(ledgers[0].measured[0], ledgers[1].measured[0])
    assert torch.equal(ledgers[0].rows(), ledgers[1].rows())


def test_layers_of_a_range_of_depths_are_adapted(run):
    done = run("--xgblora_layers=0.5:1", "--max_steps=2", "--num_dev=0", "--xgblora_reinit=data")
    layers = Ledger.load(done.folder / "boosters.safetensors").origin.layers
    assert {layer.rpartition(".")[0] for layer in layers} == {"model.decoder.layers.1.self_attn"}
    assert len(layers) == 2


def test_rounds_that_start_by_another_flag_are_said(run):
    done = run("--lora_init=data", "--max_steps=2", "--num_dev=0")
    assert "--lora_init data: XGBLoRA's rounds start by --xgblora_reinit" in done.log
