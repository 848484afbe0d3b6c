"""The numbers of csrc/philox.h and csrc/power_series.h are those of kernels/noise_numbers.py."""

import re
from pathlib import Path

from xgblora.kernels import noise_numbers as numbers

CSRC = Path(__file__).parent.parent.parent / "csrc"


def integers_of(header: str) -> dict[str, int]:
    """The integers that a header gives a name."""
    found = re.findall(r"\b([A-Z][A-Z0-9_]+) = (0x[0-9A-Fa-f]+|[0-9]+)u?[,;]", (CSRC / header).read_text())
    return {name: int(value, 0) for name, value in found}


def test_integers_of_philox():
    assert integers_of("philox.h") == {
        "PHILOX_MULTIPLIER_0": numbers.PHILOX_MULTIPLIERS[0],
        "PHILOX_MULTIPLIER_1": numbers.PHILOX_MULTIPLIERS[1],
        "PHILOX_INCREMENT_0": numbers.PHILOX_KEY_INCREMENTS[0],
        "PHILOX_INCREMENT_1": numbers.PHILOX_KEY_INCREMENTS[1],
        "PHILOX_ROUNDS": numbers.PHILOX_ROUNDS,
        "DIRECTION_STREAM": numbers.Stream.DIRECTION,
        "ROUNDING_STREAM": numbers.Stream.ROUNDING,
    }


def test_the_lanes_have_no_numbers_of_their_own():
    assert "round < PHILOX_ROUNDS" in (CSRC / "philox.h").read_text()
    assert "round < PHILOX_ROUNDS" in (CSRC / "host_lanes.h").read_text()


def test_bit_patterns_of_the_logarithm():
    found = integers_of("power_series.h")
    assert found["SQRT_HALF_BITS"] == numbers.SQRT_HALF_BITS
    text = (CSRC / "power_series.h").read_text()
    (one,) = re.findall(r"SQRT_HALF_TO_ONE = (0x[0-9A-F]+)u - SQRT_HALF_BITS;", text)
    assert int(one, 16) - numbers.SQRT_HALF_BITS == numbers.SQRT_HALF_TO_ONE


def test_series_to_the_bit(host):
    # times a power of two, which rounds nothing
    series = [*(-4.0 * term for term in numbers.LOG_SERIES), *numbers.SIN_SERIES, *numbers.COS_SERIES]
    wanted = [*series, numbers.LN_2, numbers.TWO_PI_2_M32]
    assert [value.hex() for value in host.power_series(len(wanted))] == [value.hex() for value in wanted]
