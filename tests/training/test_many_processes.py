"""Several processes, one run: what they leave, which cannot begin, and how a run goes on with more of them.

The run of every test is tiny, and its processes are forked from this one.
"""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.fixtures.models import tiny_opt
from tests.fixtures.runs import Run
from tests.fixtures.together import FLAGS, LONG, assert_same, assert_whole, at_call, left_by
from xgblora import Ledger
from xgblora.ops.choice import available, choose
from xgblora.replaying import replay
from xgblora.tape import Tape
from xgblora.training.process_trainer import ProcessTrainer
from xgblora.training.zero_order_optimizer import ZeroOrderOptimizer

KILLS = 30 if os.environ.get("XGBLORA_PROCESSES") else 3


def test_two_processes_on_other_backends_agree_after_every_step(train_together, tmp_path):
    """Noise, update and merge have the same bits whatever makes them; of what differs all take the first one's."""
    if "host" not in available("update_", "cpu"):
        pytest.skip("the host extension is not built")

    def before(number):
        os.environ["XGBLORA_BACKEND"] = ("eager", "host")[number]
        choose.cache_clear()
        assert choose("update_", "cpu").backend == os.environ["XGBLORA_BACKEND"]

    flags = ("--zo_agree_steps=1", "--xgblora_reinit=data", "--xgblora_colsample=0.5")
    assert_whole(train_together(2, tmp_path / "two", *flags, before=before))
    assert len(Run(tmp_path / "two").entries("merges.jsonl")) == 2
    assert len(Run(tmp_path / "two").losses) == 8


def test_directions_of_two_processes_leave_what_one_leaves(train_together, run_in, tmp_path):
    flags = ("--zo_parallel=directions", "--zo_directions=2", "--zo_pairing=sequential", "--zo_optimizer=adam")
    assert_whole(train_together(2, tmp_path / "two", *flags, "--xgblora_shrinkage=line_search"))
    one = run_in(tmp_path / "one", *FLAGS, *flags, "--xgblora_shrinkage=line_search")
    assert_same(left_by(tmp_path / "two"), left_by(one.folder))


def test_a_process_that_has_trained_something_else_is_named_with_the_step(train_together, tmp_path):
    def change(optimizer, *arguments):
        optimizer.param_groups[0]["params"][0].data.add_(1e-6)

    ended = train_together(
        3,
        tmp_path / "run",
        "--zo_agree_steps=1",
        "--save_steps=4",
        before=lambda number: at_call(ZeroOrderOptimizer, "step", 2, change) if number == 1 else None,
    )
    assert [one.status for one in ended] == [1, 1, 1]
    (line,) = [line for one in ended for line in one.errors if line.startswith("error: ")]
    assert line.startswith("error: step 2: what process 1 (")


@pytest.mark.parametrize(
    ("own", "line"),
    [
        (lambda number: (f"--seed={number}",), "error: "),
        (lambda number: ("--zo_eps=-1",) if number else (), "error: process 1: zo_eps=-1.0: must be"),
        (lambda number: (f"--zo_eps=0.0{number + 1}",), "error: zo_eps: is 0.02 in process 1 and 0.01 in process 0"),
    ],
)
def test_processes_with_other_flags_end_together_in_one_line(train_together, tmp_path, own, line):
    ended = train_together(2, tmp_path / "run", own_flags=own)
    assert [one.status for one in ended] == [2, 2], ended
    assert [said for said in ended[0].errors if said.startswith(line)], ended[0].errors
    assert not [said for said in ended[1].errors if said.startswith("error")]
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_full_parameters_by_signs_end_both_in_one_line(start_processes, train_tiny, tmp_path):
    flags = ("--full", "--zo_parallel=signs")
    ended = start_processes(2, lambda number: train_tiny(tmp_path / "run", *flags)).ended()
    assert [one.status for one in ended] == [2, 2], ended
    line = "error: zo_parallel=signs: is for adapters; --full takes examples or directions"
    assert [one.errors for one in ended] == [[line], []]
    assert not (tmp_path / "run").exists()


def test_a_process_with_another_model_in_the_same_place_ends_all_in_one_line(
    train_together, tiny_model_folder, tiny_tokenizer, tmp_path
):
    shutil.copytree(tiny_model_folder, tmp_path / "0" / "model")
    other = tiny_opt(seed=1, vocab_size=len(tiny_tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=1)
    other.save_pretrained(tmp_path / "1" / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "1" / "model")
    ended = train_together(
        2, tmp_path / "run", "--model_name=model", before=lambda number: os.chdir(tmp_path / str(number))
    )
    assert [one.status for one in ended] == [2, 2], ended
    (line,) = [said for one in ended for said in one.errors if said.startswith("error")]
    assert line.startswith("error: fingerprint of the base model: is ") and " in process 1 and " in line
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


# (processes before and after, the step between, the last one, further flags)
JOINING = [
    (2, 3, 4, 8, []),
    pytest.param(3, 4, 150, 300, ["--xgblora_steps_per_iteration=40", "--save_steps=50"], marks=LONG),
]


@pytest.mark.parametrize(("few", "more", "middle", "last", "flags"), JOINING)
def test_a_process_that_has_the_base_alone_joins_and_leaves_what_those_do_that_have_all(
    train_together, tiny_model_folder, tmp_path, few, more, middle, last, flags
):
    flags = [*flags, f"--max_steps={last}"]
    for name in ("all", "joined"):
        assert_whole(train_together(few, tmp_path / name, *flags, f"--max_steps={middle}"))
    checkpoint = tmp_path / "joined" / f"checkpoint-{middle}"
    # base + tape are what it takes up
    replayed, _ = replay(AutoModelForCausalLM.from_pretrained(tiny_model_folder), Tape.load(checkpoint / "tape.bin"))
    assert torch.equal(replayed.adapters.arena.master, load_file(checkpoint / "adapters.safetensors")["master"])
    assert torch.equal(replayed.ledger.rows(), Ledger.load(checkpoint / "boosters.safetensors").rows())

    def keep_arena_of_last_checkpoint(number):
        checkpoints = len([path for path in (tmp_path / "all").glob("checkpoint-*") if int(path.name[11:]) > middle])
        keep = lambda trainer: torch.save(trainer.adapters.arena.master, tmp_path / f"{number}.pt")  # noqa: E731
        at_call(ProcessTrainer, "gather_random_states", checkpoints, keep)

    assert_whole(train_together(more, tmp_path / "all", *flags))
    elsewhere = tmp_path / "elsewhere"
    own_flags = lambda number: (f"--output_dir={elsewhere}",) if number == few else ()  # noqa: E731
    joined = train_together(
        more, tmp_path / "joined", *flags, own_flags=own_flags, before=keep_arena_of_last_checkpoint
    )
    assert_whole(joined)
    assert_same(left_by(tmp_path / "joined", last), left_by(tmp_path / "all", last))
    arena = left_by(tmp_path / "all", last)[2]
    assert all(torch.equal(torch.load(tmp_path / f"{number}.pt"), arena) for number in range(more))
    assert not elsewhere.exists()


def test_backpropagation_averages_the_gradients(train_together, run_in, tiny_model_folder, tmp_path):
    """DDP over the adapters: two processes with half of a batch each train what one with the whole of it does."""
    model = shutil.copytree(tiny_model_folder, tmp_path / "model")
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    # of which each process drops out other things
    (model / "config.json").write_text(json.dumps({**settings, "dropout": 0.0}), encoding="utf-8")
    # steps that are as long as the gradients, so that rounding stays what it is
    flags = ("--trainer=regular", "--optim=sgd", "--learning_rate=0.1", f"--model_name={model}")
    assert_whole(train_together(2, tmp_path / "two", *flags, "--per_device_train_batch_size=2"))
    run_in(tmp_path / "one", *FLAGS, *flags)
    losses = [[float(loss) for _, loss in Run(tmp_path / name).losses] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    arenas = [load_file(tmp_path / name / "checkpoint-8" / "adapters.safetensors")["master"] for name in ("one", "two")]
    assert torch.allclose(*arenas, rtol=1e-4, atol=1e-6)
