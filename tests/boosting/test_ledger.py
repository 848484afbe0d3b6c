import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import xgblora
from xgblora import Ledger
from xgblora.boosting.ledger import FORMAT
from xgblora.errors import InputError


def attach(outputs=7, **options):
    """Layers whose sizes are multiples of nothing: the arena is padded between and after them."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(5, 3), "second": nn.Linear(3, outputs)})
    return xgblora.attach(model, ["first", "second"], alpha=2.0, **options)


def boosted(rounds=3, **options):
    booster = xgblora.Booster(attach(seed=-9), **options)
    for round in range(rounds):
        torch.manual_seed(round)
        booster.adapters.arena.master.normal_()
        booster.merge(step=round + 1, epoch=1 / 3, held_out_loss=None if round else 0.1)
    return booster


def by_layer(ledger, merged):
    return [part for slot in ledger.slots for part in slot.views(merged.adapters.unsqueeze(0))]


def assert_same(ours, theirs):
    for name in ("slots", "scale", "rounding", "seed"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert len(ours) == len(theirs)
    for a, b in zip(ours.boosters, theirs.boosters, strict=True):
        for name in ("round", "step", "epoch", "held_out_loss"):
            assert getattr(a, name) == getattr(b, name)
        assert all(torch.equal(x, y) for x, y in zip(by_layer(ours, a), by_layer(theirs, b), strict=True))


@pytest.mark.parametrize("rounds", [0, 1, 3])
@pytest.mark.parametrize("rounding", ["remainder", "stochastic", "nearest"])
def test_a_saved_ledger_is_loaded_bit_for_bit(tmp_path, rounds, rounding):
    ledger = boosted(rounds, rounding=rounding).ledger
    ledger.save(tmp_path / "boosters.safetensors", about={"model": "toy"})
    assert_same(Ledger.load(tmp_path / "boosters.safetensors"), ledger)
    assert [path.name for path in tmp_path.iterdir()] == ["boosters.safetensors"]


def test_the_file_holds_a_and_b_of_every_layer_under_its_name(tmp_path):
    ledger = boosted(3).ledger
    ledger.save(tmp_path / "ledger.safetensors", about={"model": "toy"})
    with safe_open(tmp_path / "ledger.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["xgblora"])
        a, b = ledger.slots[1].views(ledger.boosters[2].adapters.unsqueeze(0))
        assert torch.equal(file.get_tensor("second.a")[2], a[0, 0])
        assert torch.equal(file.get_tensor("second.b")[2], b[0, 0])
    assert shapes == {"first.a": (3, 5), "first.b": (3, 3), "second.a": (3, 3), "second.b": (3, 7)}
    assert header["about"] == {"model": "toy"}
    assert header["scale"] == 2.0


def test_a_run_goes_on_from_a_loaded_ledger_and_saves_it_again(tmp_path):
    path = tmp_path / "ledger.safetensors"
    whole = boosted(4)
    boosted(3).ledger.save(path)
    resumed = xgblora.Booster(attach(seed=-9))
    resumed.replay(Ledger.load(path))
    torch.manual_seed(3)
    resumed.adapters.arena.master.normal_()
    resumed.merge(step=4, epoch=1 / 3)
    for ours, theirs in zip(resumed.adapters.weights(), whole.adapters.weights(), strict=True):
        assert torch.equal(ours, theirs)
    resumed.ledger.save(path)
    assert_same(Ledger.load(path), whole.ledger)


def test_saving_over_a_ledger_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path, ledger = tmp_path / "ledger.safetensors", boosted(1).ledger
    ledger.save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        ledger.save(path, about={"not json": object()})
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def header_of(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["xgblora"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def rewrite(path, change):
    header, tensors = header_of(path)
    header = change(header, tensors) or header
    save_file(tensors, path, metadata={"xgblora": json.dumps(header)})


SPOILT = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "torn header": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "text": lambda path: path.write_text("not a ledger\n" * 9),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "other safetensors": lambda path: save_file({"x": torch.zeros(2)}, path),
    "other metadata": lambda path: save_file({"x": torch.zeros(2)}, path, metadata={"xgblora": "[]"}),
    "no json": lambda path: save_file({"x": torch.zeros(2)}, path, metadata={"xgblora": "{"}),
    "future format": lambda path: rewrite(path, lambda header, _: {**header, "format": FORMAT + "0"}),
    "no scale": lambda path: rewrite(path, lambda header, _: header.pop("scale") and None),
    "no slots": lambda path: rewrite(path, lambda header, _: header["slots"].clear()),
    "unknown entry": lambda path: rewrite(path, lambda header, _: header["boosters"][0].update(colour=1)),
    "missing layer": lambda path: rewrite(path, lambda _, tensors: tensors.pop("second.a") is None or None),
    "other shape": lambda path: rewrite(path, lambda _, tensors: tensors.update({"first.a": torch.zeros(2, 9)})),
    "fewer rows": lambda path: rewrite(path, lambda _, tensors: tensors.update({"first.a": torch.zeros(1, 5)})),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_torn_or_foreign_file_is_refused_in_one_line_that_names_it(tmp_path, how):
    path = tmp_path / "ledger.safetensors"
    boosted(2).ledger.save(path)
    SPOILT[how](path)
    with pytest.raises(InputError) as raised:
        Ledger.load(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
