import csv

from xgblora.population import Told
from xgblora.records.reward_files import RewardFiles, read_steps
from xgblora.records.run_folder import RunFolder


def test_a_reward_that_is_called_as_a_column_has_one_of_its_own(tmp_path):
    folder = RunFolder(tmp_path / "run")
    files = RewardFiles(folder, ["mean", "short"], keep=0)
    told = Told(0, 1, mean=0.25, best=0.5, best_member=3, failed=0, updated=True, sigma=0.1, lr=0.2)
    files.add_step(1, told, truncated=2, rewards={"mean": 40.0, "short": 7.0})
    with open(folder.step_reward, encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["mean"], row["reward.mean"], row["short"]) == ("0.25", "40.0", "7.0")
    assert read_steps(folder.step_reward)["mean"] == [0.25], "of members, and not of one reward"
