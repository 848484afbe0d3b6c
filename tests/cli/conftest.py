"""Running commands in this process, and looking at how they ended."""

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
def flag_file(tmp_path):
    """A function `(text, name)` that writes a file of flags and gives its path."""

    def write(text: str, name: str = "flags.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write
