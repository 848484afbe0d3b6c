"""csrc/philox.h against the published vectors and the words of xgblora.ops.noise."""

import pytest
import torch

from xgblora.ops.noise import DISTRIBUTIONS, Stream, _box_muller, random_words

# Random123's known answers for philox4x32-10 (counter, key, words)
KNOWN_ANSWERS = [
    (["00000000"] * 4, ["00000000"] * 2, ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]),
    (["ffffffff"] * 4, ["ffffffff"] * 2, ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]),
    (
        ["243f6a88", "85a308d3", "13198a2e", "03707344"],
        ["a4093822", "299f31d0"],
        ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers_of_random123(host, counter, key, words):
    made = host.philox([int(word, 16) for word in counter], [int(word, 16) for word in key])
    assert [f"{word:08x}" for word in made] == words


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 11, 2**64 - 1])
@pytest.mark.parametrize("start", [0, 1 << 20, (1 << 34) - 8])
def test_words_are_those_of_the_reference(host, seed, start):
    signed = seed - (1 << 64) if seed >= 1 << 63 else seed
    wanted = random_words(signed, 16, Stream.ROUNDING, device=torch.device("cpu"), start=start).tolist()
    for shift in range(8):
        assert host.rounding_words(seed, start + shift) == wanted[shift : shift + 8]
        assert host.rounding_word(seed, start + shift) == wanted[shift]


def test_words_before_the_first_element_do_not_disturb_the_others(host):
    wanted = random_words(3, 8, Stream.ROUNDING, device=torch.device("cpu")).tolist()
    for before in range(1, 8):
        assert host.rounding_words(3, -before)[before:] == wanted[: 8 - before]


@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
@pytest.mark.parametrize("first", [0, 5, 2**32 - 64, 2**32 - 7, 2**40 + 3])
def test_noise_in_lanes_is_that_of_the_reference_at_any_counter(host, distribution, first):
    for seed in (0, -3, 0x299F31D0_A4093822):
        words = random_words(seed, 256, Stream.DIRECTION, device=torch.device("cpu"), start=4 * first)
        wanted = _box_muller(words) if distribution == "gaussian" else (2 * (words & 1) - 1).float()
        assert host.noise_block(distribution, seed % 2**64, first) == wanted.tolist()
