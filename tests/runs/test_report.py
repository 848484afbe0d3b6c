"""What a run says of itself: the line about the zeroth-order estimate."""

import pytest

from xgblora.runs.report import estimate_and_rule
from xgblora.training.arguments import XGBLoRAArguments

FZOO = {"zo_two_sided": False, "zo_directions": 8, "zo_normalise": True, "zo_distribution": "rademacher"}


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({}, "eps 0.001, 1 direction(s), pairing auto"),
        ({"zo_optimizer": "sign"}, "eps 0.001, 1 direction(s), pairing auto, sign"),
        ({"zo_optimizer": "momentum"}, "eps 0.001, 1 direction(s), pairing auto, momentum (beta1 0.9)"),
        (
            {"zo_optimizer": "adam", "adam_beta2": 0.95},
            "eps 0.001, 1 direction(s), pairing auto, adam (beta1 0.9, beta2 0.95, epsilon 1e-08)",
        ),
        (
            FZOO,
            "eps 0.001, 8 direction(s), pairing auto, one-sided, normalised by the deviation of the losses (FZOO), "
            "rademacher",
        ),
    ],
)
def test_the_line_names_what_differs_from_two_sided_gaussian_sgd(tmp_path, flags, line):
    args = XGBLoRAArguments(output_dir=str(tmp_path), use_cpu=True, **flags)
    assert estimate_and_rule(args) == line
