"""`--resume_from_checkpoint last`, and a folder that holds one run and no other."""

import os
import shutil

import pytest

from tests.records.resumed_runs import assert_same_run, copy_as_killed
from xgblora.records import checkpoint
from xgblora.training import XGBLoRATrainer


class TestLast:
    """--resume_from_checkpoint last."""

    FLAGS = ("--max_steps=6", "--num_dev=0", "--save_strategy=steps", "--save_steps=2")

    def test_it_begins_a_new_run_in_an_empty_folder(self, run, run_in, tmp_path):
        begun = run_in(tmp_path / "run", *self.FLAGS, "--resume_from_checkpoint=last")
        assert "no whole checkpoint: starting from the beginning" in begun.log
        assert_same_run(begun, run(*self.FLAGS), after=0)

    def test_it_begins_again_where_a_run_was_killed_before_its_first_checkpoint(self, run, run_in, tmp_path):
        killed = tmp_path / "run"
        killed.mkdir()
        (killed / "step_loss.csv").write_text("step,loss\n1,5.0\n")
        (killed / "merges.jsonl").write_text('{"round": 1')
        assert_same_run(run_in(killed, *self.FLAGS, "--resume_from_checkpoint=last"), run(*self.FLAGS), after=0)

    def test_a_finished_run_gives_the_same_results_again_and_again(self, run, run_in, tmp_path):
        folder = tmp_path / "run"
        shutil.copytree(run(*self.FLAGS).folder, folder)
        for _ in range(2):
            resumed = run_in(folder, *self.FLAGS, "--resume_from_checkpoint=last")
            assert_same_run(resumed, run(*self.FLAGS), after=0)
            assert (folder / "tape.bin").read_bytes() == (run(*self.FLAGS).folder / "tape.bin").read_bytes()

    def test_leftovers_of_killed_writes_are_removed(self, run, run_in, tmp_path):
        killed = copy_as_killed(run(*self.FLAGS), tmp_path / "run", 4)
        for name in (".checkpoint-6.x1", ".model.x1"):
            (killed / name / "checkpoint-6").mkdir(parents=True)
        for name in (".tape.bin.x1.bin", ".metrics.json.x1.json", ".loss.png.x1.png"):
            (killed / name).write_text("half")
        run_in(killed, *self.FLAGS, "--resume_from_checkpoint=last")
        assert [path.name for path in killed.iterdir() if path.name.startswith(".")] == []

    def test_a_finished_run_without_a_checkpoint_is_refused(self, run, run_in, tmp_path, capsys):
        folder = tmp_path / "run"
        shutil.copytree(run("--max_steps=3", "--num_dev=0").folder, folder)
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        self.assert_refused(run_in, capsys, [folder], "holds a finished run and no checkpoint", "--overwrite")
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    def test_it_needs_the_folder_of_the_run(self, run_in, train_tiny, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        self.assert_refused(lambda *flags: train_tiny(None, *flags), capsys, [], "give --output_dir")
        assert list(tmp_path.iterdir()) == []

    def test_a_file_in_the_place_of_the_folder_is_refused(self, run_in, tmp_path, capsys):
        (tmp_path / "run").write_text("")
        self.assert_refused(run_in, capsys, [tmp_path / "run"], f"output_dir={tmp_path / 'run'}: is a file")

    def assert_refused(self, run_in, capsys, folder, *said):
        with pytest.raises(SystemExit) as exit:
            run_in(*folder, *self.FLAGS, "--resume_from_checkpoint=last")
        assert exit.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        for part in said:
            assert part in line


class TestOneFolderOneRun:
    """Nothing in a folder is of another run, or of a future that is being trained anew."""

    FLAGS = ("--max_steps=6", "--num_dev=0", "--save_strategy=steps", "--save_steps=2")

    def test_resuming_an_older_checkpoint_beside_newer_ones_is_refused(self, run, run_in, tmp_path, capsys):
        folder = tmp_path / "run"
        shutil.copytree(run(*self.FLAGS).folder, folder)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(SystemExit):
            run_in(folder, *self.FLAGS, f"--resume_from_checkpoint={folder / 'checkpoint-2'}")
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{folder / 'checkpoint-6'} is newer; resume from last" in line
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    def test_resuming_into_a_folder_of_another_run_is_refused(self, run, run_in, tmp_path, capsys):
        folder = tmp_path / "run"
        shutil.copytree(run(*self.FLAGS).folder, folder)
        other = run(*self.FLAGS, "--zo_eps=1e-2").folder
        with pytest.raises(SystemExit):
            run_in(folder, *self.FLAGS, "--zo_eps=1e-2", f"--resume_from_checkpoint={other / 'checkpoint-2'}")
        (line,) = capsys.readouterr().err.splitlines()
        assert f"output_dir={folder}: holds a run already" in line
        resumed = run_in(
            folder, *self.FLAGS, "--zo_eps=1e-2", "--overwrite", f"--resume_from_checkpoint={other / 'checkpoint-2'}"
        )
        assert resumed.losses == run(*self.FLAGS, "--zo_eps=1e-2").losses[2:]
        assert [path.name for path in checkpoint.checkpoints_in(folder)] == ["checkpoint-6", "checkpoint-4"]

    def test_with_overwrite_the_newer_ones_are_removed_before_it_trains(self, run, run_in, tmp_path, monkeypatch):
        """Else a kill would leave `last` a checkpoint whose rows in step_loss.csv are cut off."""
        folder = tmp_path / "run"
        shutil.copytree(run(*self.FLAGS).folder, folder)

        def killed(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(XGBLoRATrainer, "training_step", killed)
            with pytest.raises(SystemExit):
                run_in(folder, *self.FLAGS, "--overwrite", f"--resume_from_checkpoint={folder / 'checkpoint-2'}")
        assert [path.name for path in checkpoint.checkpoints_in(folder)] == ["checkpoint-2"]
        resumed = run_in(folder, *self.FLAGS, "--resume_from_checkpoint=last")
        assert resumed.losses == run(*self.FLAGS).losses

    def test_a_killed_run_with_overwrite_leaves_no_checkpoint_of_the_run_before(
        self, run, run_in, tmp_path, monkeypatch
    ):
        folder = tmp_path / "run"
        shutil.copytree(run(*self.FLAGS).folder, folder)

        def killed(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(XGBLoRATrainer, "training_step", killed)
            with pytest.raises(SystemExit):
                run_in(folder, *self.FLAGS, "--overwrite", "--zo_eps=1e-2")
        resumed = run_in(folder, *self.FLAGS, "--zo_eps=1e-2", "--resume_from_checkpoint=last")
        assert resumed.losses == run(*self.FLAGS, "--zo_eps=1e-2").losses

    def test_a_folder_with_nothing_but_a_checkpoint_is_used_already(self, run, run_in, tmp_path, capsys):
        shutil.copytree(run(*self.FLAGS).folder / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
        with pytest.raises(SystemExit):
            run_in(tmp_path / "run", *self.FLAGS)
        (line,) = capsys.readouterr().err.splitlines()
        assert "holds a run already (checkpoint-2)" in line

    def test_checkpoints_are_rotated_by_step_though_one_was_removed_by_half(self, run_in, tmp_path):
        folder = tmp_path / "run"
        run_in(folder, *self.FLAGS, "--max_steps=4")
        # what a kill while checkpoint-2 was removed leaves: the folder that changed last
        (folder / "checkpoint-2" / "manifest.json").unlink()
        os.utime(folder / "checkpoint-4", (1e9, 1e9))
        run_in(folder, *self.FLAGS, "--save_total_limit=2", "--resume_from_checkpoint=last")
        assert [path.name for path in checkpoint.checkpoints_in(folder)] == ["checkpoint-6", "checkpoint-4"]
