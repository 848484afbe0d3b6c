"""Whatever is typed, a command ends with status 0 or with 2 and one line, and with 2 it has written nothing."""

import argparse
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.conftest import assert_clean
from tests.fuzz.inputs import command_lines, damaged_bytes, data_files, flag_files, flags_of
from xgblora.cli import compare, env, export, replay, train
from xgblora.cli.flags import FlagParser
from xgblora.cli.result import ResultArguments
from xgblora.training.arguments import FLAGS

# shares of the whole, which is 3,000 lines and files of flags and 1,000 data files
SHARES = {"train": 0.4, "train file": 0.2, "compare": 0.2, "export": 0.1, "replay": 0.1}


def tried(few: int, count, share: float = 1.0):
    """Hypothesis's settings for `few` inputs, or a share of what the environment asks for."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(max_examples=count(few, share), deadline=None, database=None, suppress_health_check=checks)


@pytest.fixture(scope="module")
def plain_words(tiny_model_folder, review_folder) -> list[str]:
    """A good dry run, in front of what is drawn."""
    flags = {
        "model_name": tiny_model_folder,
        "data_dir": review_folder,
        "dtype": "float32",
        "num_train": 8,
        "num_dev": 4,
        "num_eval": 4,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "use_cpu": "true",
        "dry_run": "true",
    }
    return [f"--{name}={value}" for name, value in flags.items()]


def test_training(ending_of, plain_words, count):
    flags = flags_of(train.build_parser(show_all=True))

    @seed(0)
    @tried(60, count, SHARES["train"])
    @given(command_lines(flags, tuple(FLAGS.keys() & flags.keys())))
    def holds(words):
        assert_clean(ending_of(train.main, [*plain_words, *words, "--dry_run=true"]))

    holds()


def test_training_with_a_file_of_flags(ending_of, plain_words, count, tmp_path):
    flags = flags_of(train.build_parser(show_all=True))
    path = tmp_path / "flags.yaml"

    @seed(1)
    @tried(40, count, SHARES["train file"])
    @given(flag_files(flags, tuple(FLAGS.keys() & flags.keys())))
    def holds(text):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert_clean(ending_of(train.main, [str(path), *plain_words]))

    holds()


def test_comparing(ending_of, plain_words, count):
    flags = flags_of(compare.build_parser(show_all=True))

    @seed(2)
    @tried(15, count, SHARES["compare"])
    @given(command_lines(flags, ("methods", "seeds", "sweep", "variants", "figure_pdf", "skip_completed")))
    def holds(words):
        assert_clean(ending_of(compare.main, [*plain_words, *words, "--dry_run=true"]))

    holds()


@pytest.mark.parametrize("command", [export, replay], ids=["export", "replay"])
def test_taking_results_away(ending_of, count, tmp_path, command, train_tiny):
    run = train_tiny(tmp_path / "run", "--max_steps=2", "--xgblora_steps_per_iteration=1")
    own = export.ExportArguments if command is export else replay.ReplayArguments
    flags = flags_of(FlagParser((own, ResultArguments)))

    @seed(3)
    @tried(15, count, SHARES["export"])
    @given(
        command_lines(flags), st.sampled_from([str(run), str(run / "tape.bin"), str(run / "metrics.json"), "no", ""])
    )
    def holds(words, path):
        assert_clean(ending_of(command.main, [path, *words, "--use_cpu=true", "--output_dir=out"]))

    holds()


def test_showing_the_environment(ending_of, count):
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")

    @seed(4)
    @tried(5, count, 0.0)
    @given(command_lines({"chek": st.just(["x"]), "quiet": st.just([])}))
    def holds(words):
        assert_clean(ending_of(env.main, words))

    holds()


ROWS = [{"sentence": f"a gem {number}", "label": number % 2} for number in range(16)]


@pytest.mark.parametrize("form", ["tsv", "csv", "jsonl", "json", "parquet"])
def test_data_files(ending_of, plain_words, count, tmp_path, form):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "dev"):
        data_files(ROWS)[form](folder / f"{split}.{form}")
    content = Path(folder / f"train.{form}").read_bytes()

    @seed(5)
    @tried(12, count, 0.2 / 3)
    @given(damaged_bytes(content))
    def holds(damaged):
        (folder / f"train.{form}").write_bytes(damaged)
        assert_clean(ending_of(train.main, [*plain_words, f"--data_dir={folder}"]))

    holds()
