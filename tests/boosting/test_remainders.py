"""Remainders on the host: a merge has the bits that it has with all of them on the device."""

import pytest
import torch

import xgblora
from xgblora.boosting.remainders import OnHost
from xgblora.errors import InputError


def merged(make_model, randomise_adapters, where: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """The weights after three merges and a rollback to the second."""
    adapters = xgblora.attach(make_model(dtype=dtype), alpha=2.0)
    booster = xgblora.Booster(adapters, remainders=where)
    for seed in range(3):
        randomise_adapters(adapters, seed=seed, std=0.02)
        booster.merge()
    booster.rollback(round=2)
    randomise_adapters(adapters, seed=7, std=0.02)
    booster.merge()
    return adapters.weights()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_merges_have_the_bits_of_those_on_the_device(make_model, randomise_adapters, dtype):
    there, here = (merged(make_model, randomise_adapters, where, dtype) for where in ("device", "host"))
    assert all(map(torch.equal, there, here))


def test_one_plane_at_a_time_leaves_the_host(make_opt):
    weights = xgblora.attach(make_opt(dtype=torch.bfloat16), alpha=2.0).weights()
    kept = OnHost(weights)
    for turn in range(2):
        shapes = []
        for part, planes in kept.turns(weights):
            assert [plane.shape for plane in planes] == [weight.shape for weight in weights[part]]
            # what a merge left there came back
            assert bool((planes[0] == 5 * turn).all())
            planes[0].fill_(5 * turn + 5)
            shapes += [plane.shape for plane in planes]
        assert shapes == [weight.shape for weight in weights]


def test_another_place_is_refused(make_opt):
    with pytest.raises(InputError, match="remainders=disk: must be one of device, host"):
        xgblora.Booster(xgblora.attach(make_opt(), alpha=2.0), remainders="disk")
