"""Running commands in this process, and looking at how they ended."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    status: int
    output: str
    errors: list[str]


@pytest.fixture
def train_command(tiny_model_folder, review_folder, tmp_path, capsys, monkeypatch):
    """A function `(*flags)` that runs `xgblora-train` in an empty folder and gives its `Ending`.

    The flags come after those of a good run of 3 steps into `run`, which they override.
    """
    import logging

    from xgblora.cli.train import main

    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    logger = logging.getLogger("xgblora")
    monkeypatch.setattr(logger, "handlers", list(logger.handlers))
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    level = logger.level
    good = {
        "model_name": tiny_model_folder,
        "dtype": "float32",
        "data_dir": review_folder,
        "num_train": 12,
        "num_dev": 4,
        "num_eval": 4,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "output_dir": "run",
        "disable_tqdm": "true",
    }

    def run(*flags: object, defaults: bool = True) -> Ending:
        words = [f"--{name}={value}" for name, value in good.items()] if defaults else []
        capsys.readouterr()
        try:
            main([*words, "--use_cpu=true", *map(str, flags)] if defaults else [*map(str, flags)])
            status = 0
        except SystemExit as exit:
            status = exit.code or 0
        captured = capsys.readouterr()
        return Ending(status, captured.out, captured.err.splitlines())

    yield run
    logger.setLevel(level)


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    """A function `(main, *arguments)` that runs a command in an empty folder and gives its `Ending`."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(main: Callable, *arguments: object) -> Ending:
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as exit:
            status = exit.code or 0
        captured = capsys.readouterr()
        return Ending(status, captured.out, captured.err.splitlines())

    return run


@pytest.fixture(scope="session")
def zero_order_run(train_tiny, tmp_path_factory) -> Path:
    """A finished zeroth-order run in bf16: 7 steps, 3 merges and a rest, checkpoints 3, 6 and 7. Not to be changed."""
    return train_tiny(
        tmp_path_factory.mktemp("runs") / "run",
        "--max_steps=7",
        "--xgblora_steps_per_iteration=2",
        "--save_strategy=steps",
        "--save_steps=3",
        "--dtype=bfloat16",
    )


@pytest.fixture(scope="session")
def first_order_run(train_tiny, tmp_path_factory) -> Path:
    """A finished run of plain LoRA, r = 2, by backpropagation in fp32. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "lora"
    return train_tiny(folder, "--trainer=regular", "--lora", "--lora_r=2", "--max_steps=4", "--save_model=false")


@pytest.fixture
def run_copy(zero_order_run, tmp_path) -> Path:
    """A copy of the zeroth-order run, to be changed."""
    return Path(shutil.copytree(zero_order_run, tmp_path / "run"))


@pytest.fixture
def killed_run(run_copy) -> Path:
    """The zeroth-order run as a process that was killed would have left it, its last record half written."""
    for name in ("boosters.safetensors", "metrics.json"):
        (run_copy / name).unlink()
    for name in ("model", "checkpoint-7"):
        shutil.rmtree(run_copy / name)
    tape = run_copy / "tape.bin"
    # the record of the end (37 bytes) and that of the last merge (25) were never written, the last step in part
    tape.write_bytes(tape.read_bytes()[: -37 - 25 - 5])
    return run_copy


def assert_one_line(ending: Ending, *said: object) -> None:
    """The command refused, in one line that says all of `said`."""
    assert ending.status == 2, ending
    assert len(ending.errors) == 1, ending.errors
    assert ending.errors[0].startswith("error: ")
    for part in said:
        assert str(part) in ending.errors[0], ending.errors[0]
    assert ending.output == ""


@pytest.fixture
def refused():
    """The function `(ending, *said)` that checks a refusal."""
    return assert_one_line


@pytest.fixture
def flag_file(tmp_path):
    """A function `(text, name)` that writes a file of flags and gives its path."""

    def write(text: str, name: str = "flags.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def export(command):
    """A function `(*arguments)` that runs `xgblora-export` and gives its `Ending`."""
    from xgblora.cli.export import main

    return lambda *arguments: command(main, *arguments)
