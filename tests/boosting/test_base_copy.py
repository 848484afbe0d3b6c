"""A rollback gives the base again: from the file that it was loaded from, or from a copy where there is none."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import xgblora
from xgblora.boosting.base_copy import BaseCopy
from xgblora.errors import InputError


@pytest.fixture
def loaded(make_model, tmp_path):
    """A function `(dtype, saved)` that loads a tiny model that was saved in a dtype, with adapters on it."""

    def load(dtype=torch.float32, saved=torch.float32):
        make_model(dtype=saved).save_pretrained(tmp_path / "model")
        return xgblora.attach(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype), alpha=2.0)

    return load


def spoil(adapters) -> list[torch.Tensor]:
    """The weights as they were, which are something else from now on."""
    before = [weight.clone() for weight in adapters.weights()]
    with torch.no_grad():
        for weight in adapters.weights():
            weight.mul_(-1.5).add_(0.25)
    return before


@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_what_lies_in_the_model_s_file_is_not_copied(loaded, dtypes):
    adapters = loaded(*dtypes)
    copy = BaseCopy(adapters)
    assert copy.nbytes == 0
    before = spoil(adapters)
    copy.restore()
    assert all(map(torch.equal, adapters.weights(), before))


def test_a_weight_that_is_no_longer_that_of_the_file_is_copied(loaded):
    adapters = loaded()
    changed = adapters.weights()[1]
    with torch.no_grad():
        changed[0, 0] += 1.0
    copy = BaseCopy(adapters)
    assert copy.nbytes == changed.nbytes
    before = spoil(adapters)
    copy.restore()
    assert all(map(torch.equal, adapters.weights(), before))


@pytest.mark.parametrize("there", ["a model of one's own", "a folder that was removed", "a torn file"])
def test_everything_is_copied_where_no_file_has_it(make_model, loaded, tmp_path, there):
    adapters = xgblora.attach(make_model(), alpha=2.0) if there == "a model of one's own" else loaded()
    for file in (tmp_path / "model").glob("*.safetensors"):
        # a new one, because the model may still read the old
        file.unlink()
        if there == "a torn file":
            file.write_bytes(b"torn")
    copy = BaseCopy(adapters)
    assert copy.nbytes == sum(weight.nbytes for weight in adapters.weights())
    before = spoil(adapters)
    copy.restore()
    assert all(map(torch.equal, adapters.weights(), before))


def test_a_file_that_is_replaced_later_changes_nothing(loaded, tmp_path):
    adapters = loaded()
    copy = BaseCopy(adapters)
    (file,) = (tmp_path / "model").glob("*.safetensors")
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "other").replace(file)
    before = spoil(adapters)
    copy.restore()
    assert all(map(torch.equal, adapters.weights(), before))


@pytest.mark.parametrize("longer", [True, False])
def test_a_file_that_was_written_to_in_its_place_is_refused(loaded, tmp_path, longer):
    adapters = loaded()
    copy = BaseCopy(adapters)
    (file,) = (tmp_path / "model").glob("*.safetensors")
    # as `cp` does it: the file is the same one, with other bytes
    file.write_bytes(file.read_bytes()[:-1] if not longer else file.read_bytes() + b"more")
    spoil(adapters)
    spoiled = [weight.clone() for weight in adapters.weights()]
    with pytest.raises(InputError, match=r"model\.safetensors: was written to since .* those of the run are whole"):
        copy.restore()
    assert all(map(torch.equal, adapters.weights(), spoiled))
