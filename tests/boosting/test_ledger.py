import json
import random
import re
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import xgblora
from xgblora import Ledger
from xgblora.adapters import Slot
from xgblora.adapters.identity import layout_hash
from xgblora.boosting.ledger import FORMAT, _digest
from xgblora.errors import InputError


def attach(outputs=7, **options):
    """Layers whose sizes are multiples of nothing: the arena is padded between and after them."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(5, 3), "second": nn.Linear(3, outputs)})
    return xgblora.attach(model, ["first", "second"], alpha=2.0, **options)


def boosted(rounds=3, rank=1, **options):
    booster = xgblora.Booster(attach(seed=-9, rank=rank), **options)
    for round in range(rounds):
        torch.manual_seed(round)
        booster.adapters.arena.master.normal_()
        booster.merge(step=round + 1, epoch=1 / 3, held_out_loss=None if round else 0.1)
    return booster


def by_layer(ledger, merged):
    return [part for slot in ledger.slots for part in slot.views(merged.adapters.unsqueeze(0))]


def assert_same(ours, theirs):
    for name in ("origin", "slots", "rounding"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert len(ours) == len(theirs)
    for a, b in zip(ours.boosters, theirs.boosters, strict=True):
        for name in ("round", "step", "epoch", "scale", "held_out_loss"):
            assert getattr(a, name) == getattr(b, name)
        assert all(torch.equal(x, y) for x, y in zip(by_layer(ours, a), by_layer(theirs, b), strict=True))


@pytest.mark.parametrize("rounds", [0, 1, 3])
@pytest.mark.parametrize("rounding", ["remainder", "stochastic", "nearest"])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_saved_ledger_is_loaded_bit_for_bit(tmp_path, rounds, rounding, rank):
    ledger = boosted(rounds, rank, rounding=rounding).ledger
    ledger.save(tmp_path / "boosters.safetensors", about={"model": "toy"})
    assert_same(Ledger.load(tmp_path / "boosters.safetensors"), ledger)
    assert [path.name for path in tmp_path.iterdir()] == ["boosters.safetensors"]


def test_a_loss_that_is_known_later_is_entered_once_and_only_for_the_merge_s_own_step(tmp_path):
    booster = boosted(2)
    ledger, before = booster.ledger, booster.ledger.boosters[1]
    booster.record_held_out_loss(1, 0.7)
    assert ledger.boosters[1] is before, "of an earlier step"
    booster.record_held_out_loss(2, 0.6)
    booster.record_held_out_loss(2, 0.5)
    assert [entry.held_out_loss for entry in booster.boosters] == [0.1, 0.6]
    assert before.held_out_loss is None, "an entry is never changed, another takes its place"
    assert torch.equal(ledger.boosters[1].adapters, before.adapters)
    ledger.save(tmp_path / "boosters.safetensors")
    assert_same(Ledger.load(tmp_path / "boosters.safetensors"), ledger)
    empty = boosted(0)
    empty.record_held_out_loss(0, 0.5)
    assert len(empty.ledger) == 0


def test_a_merge_says_which_step_it_went_back_to():
    booster = xgblora.Booster(attach())
    assert [booster.merge(step=1).kept_step, booster.merge(step=5, kept_step=3).kept_step] == [None, 3]


def test_every_booster_keeps_its_own_scale_and_what_is_not_finite_stays_so(tmp_path):
    ledger = boosted(2).ledger
    last = replace(ledger.boosters[1], scale=0.1, held_out_loss=float("nan"), adapters=ledger.boosters[1].adapters / 0)
    replace(ledger, boosters=[ledger.boosters[0], last]).save(tmp_path / "ledger.safetensors")
    first, second = Ledger.load(tmp_path / "ledger.safetensors").boosters
    assert (first.scale, second.scale) == (2.0, 0.1)
    assert second.held_out_loss != second.held_out_loss
    assert not second.adapters[:5].isfinite().any()


def test_rows_are_the_adapters_one_below_the_other():
    ledger = boosted(2).ledger
    assert torch.equal(ledger.rows(), torch.stack([booster.adapters for booster in ledger.boosters]))
    assert boosted(0).ledger.rows().shape == (0, ledger.rows().shape[1])


@pytest.mark.parametrize("rank", [1, 3])
def test_the_file_holds_a_and_b_of_every_layer_under_its_name(tmp_path, rank):
    ledger = boosted(3, rank).ledger
    ledger.save(tmp_path / "ledger.safetensors", about={"model": "toy"})
    with safe_open(tmp_path / "ledger.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["xgblora"])
        a, b = ledger.slots[1].views(ledger.boosters[2].adapters.unsqueeze(0))
        assert torch.equal(file.get_tensor("second.a")[2], a[0])
        assert torch.equal(file.get_tensor("second.b")[2], b[0])
    assert shapes == {
        "first.a": (3, rank, 5),
        "first.b": (3, rank, 3),
        "second.a": (3, rank, 3),
        "second.b": (3, rank, 7),
    }
    assert header["about"] == {"model": "toy"}
    assert header["origin"]["layers"] == ["first", "second"]
    assert [booster["scale"] for booster in header["boosters"]] == [2.0 / rank] * 3


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


def rewrite(path, change, *, sealed=True):
    """Change a ledger, and its sha256 too if `sealed`: then it is only its parts that do not fit together."""
    header, tensors = header_of(path)
    header = change(header, tensors) or header
    if sealed:
        header.pop("sha256", None)
        header["sha256"] = _digest(header, tensors)
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
    "no scale": lambda path: rewrite(path, lambda header, _: header["boosters"][0].pop("scale") and None),
    "no origin": lambda path: rewrite(path, lambda header, _: header.pop("origin") and None),
    "no rounding": lambda path: rewrite(path, lambda header, _: header.pop("rounding") and None),
    "other layout": lambda path: rewrite(path, lambda header, _: header["slots"].reverse()),
    "one booster less": lambda path: rewrite(path, lambda header, _: header["boosters"].pop() and None),
    "no slots": lambda path: rewrite(path, lambda header, _: header["slots"].clear()),
    "unknown entry": lambda path: rewrite(path, lambda header, _: header["boosters"][0].update(colour=1)),
    "missing layer": lambda path: rewrite(path, lambda _, tensors: tensors.pop("second.a") is None or None),
    "other shape": lambda path: rewrite(path, lambda _, tensors: tensors.update({"first.a": torch.zeros(2, 9)})),
    "fewer rows": lambda path: rewrite(path, lambda _, tensors: tensors.update({"first.a": torch.zeros(1, 1, 5)})),
    "another scale": lambda path: rewrite(
        path, lambda header, _: header["boosters"][0].update(scale=3.0), sealed=False
    ),
    "another alpha": lambda path: rewrite(path, lambda header, _: header["origin"].update(alpha=3.0), sealed=False),
    "another number": lambda path: rewrite(
        path, lambda _, tensors: tensors["first.a"][1].add_(1) is None, sealed=False
    ),
    "rows that changed places": lambda path: rewrite(
        path, lambda _, tensors: tensors.update({"first.a": tensors["first.a"].flip(0)}), sealed=False
    ),
    "a tensor more": lambda path: rewrite(path, lambda _, tensors: tensors.update(x=torch.zeros(1)), sealed=False),
    "no sha256": lambda path: rewrite(path, lambda header, _: header.pop("sha256") and None, sealed=False),
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A ledger and its file."""
    path = tmp_path_factory.mktemp("ledger") / "boosters.safetensors"
    ledger = boosted(2).ledger
    ledger.save(path)
    return ledger, path.read_bytes()


def test_no_byte_can_be_changed(tmp_path, whole):
    """Except where it means nothing: white space that safetensors pads its header with, digits past a double's last."""
    ledger, content = whole
    path, chance, harmless = tmp_path / "ledger.safetensors", random.Random(0), 0
    for _ in range(600):
        position = chance.randrange(len(content))
        flipped = bytearray(content)
        flipped[position] ^= chance.randrange(1, 256)
        path.write_bytes(flipped)
        try:
            found = Ledger.load(path)
        except InputError as error:
            assert re.fullmatch(re.escape(str(path)) + ": .+", str(error)), "one line"
        else:
            harmless += 1
            assert_same(found, ledger)
    assert harmless < 10


def test_no_truncation_goes_unseen(tmp_path, whole):
    _, content = whole
    path = tmp_path / "ledger.safetensors"
    for length in {*range(0, len(content), 7), *range(40), *range(len(content) - 40, len(content))}:
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=f"^{re.escape(str(path))}: .+$"):
            Ledger.load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: .+$"):
        Ledger.load(path)


class TestSizes:
    """Memory is taken by what the header says: a file of a kilobyte must not take all there is."""

    def forged(self, path, change, **settings):
        """A ledger whose header was changed, with the digest that fits it."""
        boosted(2, **settings).ledger.save(path)
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["xgblora"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        del header["sha256"]
        change(header, tensors)
        header["origin"]["layout"] = layout_hash([Slot(**slot) for slot in header["slots"]])
        header["sha256"] = _digest(header, tensors)
        save_file(tensors, path, metadata={"xgblora": json.dumps(header)})
        return path

    @pytest.mark.parametrize("change", ["features", "place", "rank", "boosters", "no slots"])
    def test_a_header_that_says_more_than_there_is(self, tmp_path, change):
        def forge(header, tensors):
            last = header["slots"][-1]
            if change == "features":
                last["out_features"] = 1 << 50
            if change == "place":
                last["b_start"] = 1 << 50
            if change == "rank":
                last["rank"] = 1 << 40
            if change == "boosters":
                header["boosters"] = header["boosters"] * 1000
            if change == "no slots":
                header["slots"] = []

        with pytest.raises(InputError, match=r"not a readable ledger .ValueError: "):
            Ledger.load(self.forged(tmp_path / "boosters.safetensors", forge))

    def test_the_same_file_with_nothing_changed_is_read(self, tmp_path):
        assert len(Ledger.load(self.forged(tmp_path / "boosters.safetensors", lambda header, tensors: None))) == 2
