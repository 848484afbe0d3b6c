"""How tokens are drawn: from the numbers of (seed, prompt, completion, position), and as often as they are likely."""

import pytest
import torch

from xgblora.completions.sampling import Sampling, next_tokens, uniforms
from xgblora.errors import InputError

CPU = torch.device("cpu")


def test_a_number_depends_on_seed_prompt_completion_and_position_alone():
    numbers = uniforms(-7, [5, 2, 9], 4, 6, CPU)
    assert (numbers.shape, numbers.dtype) == ((3, 4, 6), torch.float64)
    assert ((numbers > 0) & (numbers < 1)).all()
    assert numbers.unique().numel() == numbers.numel()
    assert torch.equal(uniforms(-7, [2], 2, 3, CPU)[0], numbers[1, :2, :3])
    for other in (uniforms(-8, [5, 2, 9], 4, 6, CPU), uniforms(-7 + (1 << 40), [5, 2, 9], 4, 6, CPU)):
        assert (other != numbers).all()


def test_they_are_uniform_and_uncorrelated():
    numbers = uniforms(3, range(200), 5, 20, CPU)
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(numbers.var() - 1 / 12) < 0.003
    for one, other in (
        (numbers[1:], numbers[:-1]),
        (numbers[:, 1:], numbers[:, :-1]),
        (numbers[..., 1:], numbers[..., :-1]),
    ):
        assert abs(torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1]) < 0.03


def drawn(logits, count=20_000, **settings):
    """How often each token is drawn with numbers that fill (0, 1) evenly."""
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens = next_tokens(torch.tensor(logits).expand(count, -1), Sampling(**settings), grid)
    return torch.bincount(tokens, minlength=len(logits)) / count


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = [0.0, 2.0, -1.0, 1.0]
    assert torch.allclose(drawn(logits), torch.tensor(logits).softmax(0), atol=1e-4)
    assert torch.allclose(drawn(logits, temperature=0.5), (2 * torch.tensor(logits)).softmax(0), atol=1e-4)
    assert drawn([0.0, float("-inf"), 0.0])[1] == 0
    assert drawn(logits, temperature=0.0).tolist() == [0, 1, 0, 0]


def test_top_p_draws_among_the_fewest_likely_tokens_that_have_the_share():
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log().tolist()
    assert torch.allclose(drawn(logits, top_p=0.6), torch.tensor([0, 4 / 7, 3 / 7, 0]), atol=1e-4)
    assert torch.allclose(drawn(logits, top_p=0.01), torch.tensor([0.0, 1, 0, 0]))
    assert torch.allclose(drawn(logits, top_p=0.95), torch.tensor([0.1, 0.4, 0.3, 0.2]), atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0: must be a finite number, 0 or more"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0: must be above 0 and at most 1"),
        ({"completions": 0}, "completions=0: must be 1 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be 1 or more"),
        ({"temperature": 0.0, "completions": 4}, "temperature=0 with completions=4: greedy texts .* are all the same"),
        ({"stop": "\n"}, "stop='\\\\n': must be a tuple"),
        ({"stop": ("",)}, "strings that are not empty"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(settings, message):
    with pytest.raises(InputError, match=message) as raised:
        Sampling(**settings)
    assert "\n" not in str(raised.value)
