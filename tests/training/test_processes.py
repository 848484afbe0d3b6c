"""Processes: one of them writes, and what several cannot do is refused."""

import pytest

from xgblora.training.arguments import XGBLoRAArguments
from xgblora.zo import ZeroOrder

FLAGS = ("--xgblora_steps_per_iteration=2", "--max_steps=4", "--save_strategy=steps", "--save_steps=2")


@pytest.fixture
def in_process(monkeypatch):
    """A function `(index)` that lets flags believe themselves in this one of two processes."""

    def pretend(index: int) -> None:
        for name in ("process_index", "local_process_index"):
            monkeypatch.setattr(XGBLoRAArguments, name, property(lambda args: index))

    return pretend


def test_the_first_of_two_processes_writes_what_a_run_alone_writes(in_process, run, run_in, tmp_path):
    in_process(0)
    first, alone = run_in(tmp_path / "first", *FLAGS), run(*FLAGS)
    assert first.losses == alone.losses
    names = [{path.relative_to(one.folder) for path in one.folder.rglob("*")} for one in (first, alone)]
    assert names[0] == names[1]
    expected = {
        "metrics.json",
        "step_loss.csv",
        "merges.jsonl",
        "train.log",
        "tape.bin",
        "checkpoint-2",
        "checkpoint-4",
    }
    assert expected <= {path.name for path in first.folder.iterdir()}


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--zo_parallel=signs", "--full"), "zo_parallel=signs: is for adapters; --full takes examples or directions"),
        (("--zo_parallel=signs", "--trainer=regular"), "zo_parallel=signs: backpropagation shares examples alone"),
        (("--zo_parallel=directions",), "zo_parallel=directions: 2 processes need as many directions or more"),
        (("--zo_parallel=signs", "--zo_two_sided=false"), "zo_parallel=signs: needs both signs of every direction"),
        (("--torch_compile", "--trainer=regular"), "torch_compile=True: is for one process, and there are 2"),
        (("--zo_agree_steps=-1",), "zo_agree_steps=-1: must be 0 or more"),
    ],
)
def test_what_two_processes_cannot_do_is_refused_in_one_line_before_anything_is_written(
    monkeypatch, train_tiny, tmp_path, capsys, flags, line
):
    monkeypatch.setattr(XGBLoRAArguments, "world_size", property(lambda args: 2))
    with pytest.raises(SystemExit, match=r"^2$"):
        train_tiny(tmp_path / "run", *flags)
    said = capsys.readouterr().err
    assert said.startswith(f"error: {line}") and "\n" not in said[:-1]
    assert not (tmp_path / "run").exists()


def test_the_second_trains_and_writes_nothing(in_process, train_tiny, tmp_path, monkeypatch):
    in_process(1)
    stepped, step = [], ZeroOrder.update
    monkeypatch.setattr(ZeroOrder, "update", lambda zo, **how: stepped.append(how) or step(zo, **how))
    train_tiny(tmp_path / "run", *FLAGS)
    assert len(stepped) == 4
    assert not (tmp_path / "run").exists()


def test_the_second_leaves_a_folder_that_it_resumes_or_overwrites_as_it_is(in_process, run_in, train_tiny, tmp_path):
    written = run_in(tmp_path / "run", *FLAGS).folder
    (written / "checkpoint-4" / "manifest.json").unlink()
    (written / ".checkpoint-6.abc").mkdir()
    before = {path: path.read_bytes() for path in written.rglob("*") if path.is_file()}
    in_process(1)
    for flags in (["--resume_from_checkpoint=last"], ["--overwrite"]):
        train_tiny(written, *FLAGS, *flags)
        assert {path: path.read_bytes() for path in written.rglob("*") if path.is_file()} == before
        assert (written / ".checkpoint-6.abc").is_dir()
