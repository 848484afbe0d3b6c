"""scripts/long_run.py: what grows in a long run."""

from pathlib import Path

from tests.fixtures.files import imported

PATH = Path(__file__).parents[2] / "scripts" / "long_run.py"


def test_the_table_and_the_size_of_a_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "deep" / "b").write_bytes(b"678")
    with imported(PATH) as script:
        assert script.size(tmp_path) == 8
        short = script.Measured(1000, 12.0, 3.0, 300 << 20, 10_240, 1 << 20, 51_200)
        long = script.Measured(20_000, 90.4, 3.25, 310 << 20, 204_800, 5 << 20, 1_048_576)
        assert script.table(short, long) == [
            "| | 1,000 steps | 20,000 steps |",
            "| --- | --- | --- |",
            "| a step, ms | 3.00 | 3.25 |",
            "| peak memory, MiB | 300 | 310 |",
            "| train.log, KiB | 10.0 | 200.0 |",
            "| train.log, bytes a step | 10.2 | 10.2 |",
            "| a checkpoint, KiB | 50 | 1024 |",
            "| the folder, MiB | 1.0 | 5.0 |",
            "| the whole process, s | 12 | 90 |",
        ]
