"""What a command line may name as a reward."""

import pytest

from xgblora.errors import InputError
from xgblora.rewards import Reward, parse_rewards


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "checks.py"
    path.write_text("import beside\n\ndef correct(prompt, completion, row):\n    return beside.VALUE\n")
    (tmp_path / "beside.py").write_text("VALUE = 0.5\n")
    return path


def test_rewards_have_names_and_weights(file, tmp_path):
    other = tmp_path / "more.py"
    other.touch()
    assert parse_rewards([f"{file}:correct"]) == (Reward(str(file), "correct", 1.0, "correct"),)
    one, two, three = parse_rewards([f"{file}:correct", f"{other}:correct", f"{other}:short"], [1, 2, -0.5])
    assert [reward.name for reward in (one, two, three)] == ["checks.correct", "more.correct", "short"]
    assert [reward.weight for reward in (one, two, three)] == [1.0, 2.0, -0.5]


def test_a_file_may_import_what_lies_beside_it(file, monkeypatch):
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    assert Reward(str(file), "correct").load()("", "", {}) == 0.5


@pytest.mark.parametrize(
    ("specs", "weights", "message"),
    [
        ([], None, "at least one FILE.py:function"),
        (["{file}"], None, "must be FILE.py:function"),
        (["{file}:"], None, "must be FILE.py:function"),
        (["correct"], None, "reward=correct: must be FILE.py:function"),
        (["nowhere.py:correct"], None, "reward=nowhere.py:correct: there is no file nowhere.py"),
        (["{file}:correct"], [1.0, 2.0], "reward_weights: 2 for 1 rewards; must be one for each"),
        (["{file}:correct"], [float("nan")], "reward_weights=nan: must be a finite number"),
        (["{file}:correct", "{file}:correct"], None, "one of them is there twice"),
    ],
)
def test_anything_else_is_one_line(file, specs, weights, message):
    with pytest.raises(InputError, match=message) as raised:
        parse_rewards([spec.format(file=file) for spec in specs], weights)
    assert "\n" not in str(raised.value)
