"""Every example runs, and says what docs/examples.md shows but for its figures."""

import re

import pytest

from tests.docs.pages import ROOT, blocks
from tests.fixtures.files import imported

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGE = ROOT / "docs" / "examples.md"
NUMBER = re.compile(r"\b\d+(\.\d+)?(e-?\d+)?\b")


def outputs() -> dict[str, str]:
    """What the page shows of each example, by its name, in the order of the page."""
    names = re.findall(r"^    python examples/(\w+)\.py$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(names, blocks(PAGE, "text"), strict=True))


def figures(text: str) -> list[float]:
    return [float(match[0]) for match in NUMBER.finditer(text)]


@pytest.fixture(scope="module")
def printed():
    """What an example prints, by its name; each is run once."""
    done = {}

    def of(name: str, capsys) -> str:
        if name not in done:
            with imported(ROOT / "examples" / f"{name}.py") as module:
                capsys.readouterr()
                module.main()
            done[name] = capsys.readouterr().out
        return done[name]

    return of


def test_every_example_is_on_the_page():
    assert sorted(outputs()) == [path.stem for path in EXAMPLES]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_prints_what_the_page_shows_but_for_its_figures(path, printed, capsys):
    assert NUMBER.sub("#", printed(path.stem, capsys)) == NUMBER.sub("#", outputs()[path.stem])


def test_each_round_of_boosting_by_hand_lowers_the_loss(printed, capsys):
    losses = figures(printed("boosting_by_hand", capsys))[1::2]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 3


def test_a_ranking_is_climbed_without_a_gradient(printed, capsys):
    before, *_, after = figures(printed("own_objective", capsys))
    assert after < before / 2


def test_the_operations_agree_with_their_formulas(printed, capsys):
    text = printed("kernels_alone", capsys)
    assert text.count("True") == 2
    assert "100% of a thousand" in text


def test_a_pole_is_balanced_and_a_server_is_pleased_by_rewards_alone(printed, capsys):
    before, *stood = printed("black_box", capsys).splitlines()[:4]
    assert figures(stood[-1])[-1] > 5 * figures(before)[0]
    rewards = figures(printed("any_server", capsys))[1::3]
    # the log-likelihoods are negative, and `figures` reads no signs
    assert rewards == sorted(rewards, reverse=True)


def test_a_reward_alone_is_learnt_from(printed, capsys):
    _, before, _, after = figures(printed("words_in_order", capsys))
    assert after > before


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_fits_on_a_page(path):
    assert path.read_text(encoding="utf-8").count("\n") <= 75
