"""A checkpoint that was damaged is refused in one line, or it gives the very state that it gave before."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import xgblora
from xgblora.adapters import Origin
from xgblora.errors import InputError
from xgblora.records import checkpoint
from xgblora.replaying import start_tape

CORRUPTIONS = 2000
FLAGS = ("--xgblora", "--xgblora_steps_per_iteration=3", "--max_steps=8", "--num_dev=0", "--save_model=false")
SAVING = ("--save_strategy=steps", "--save_steps=4")


@pytest.fixture(scope="module")
def other_model_folder(tmp_path_factory, tiny_model_folder) -> Path:
    """A model of the same shape with other weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny-opt"
    shutil.copytree(tiny_model_folder, folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(run, other_model_folder) -> dict[str, Path]:
    """The checkpoint that is damaged, called "ours": of step 8, two boosters in it; and others to mix it up with."""
    changed = {
        "of another seed": ["--seed=4"],
        "of another alpha": ["--lora_alpha=8"],
        "of another model": [f"--model_name={other_model_folder}"],
    }
    runs = {name: run(*FLAGS, *SAVING, *flags).folder for name, flags in {"ours": [], **changed}.items()}
    return {"of another step": runs["ours"] / "checkpoint-4"} | {
        name: folder / "checkpoint-8" for name, folder in runs.items()
    }


class Resumed:
    """A model with adapters, into which checkpoints are loaded."""

    def __init__(self, model_folder: Path, whole: Path):
        manifest = checkpoint.verified_manifest(whole)
        self._origin, self._run = Origin.from_json(manifest["origin"]), manifest["run"]
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        self._adapters = xgblora.attach(model, alpha=self._origin.alpha, seed=self._origin.seed)
        self._booster = xgblora.Booster(self._adapters)
        start_tape(xgblora.ZeroOrder(self._adapters, lambda model, batch: None), self._booster)

    def load(self, folder: Path) -> list:
        """What `folder` gives: arena, boosters, tape and weights."""
        checkpoint.check(folder, self._origin, self._run)
        # nothing of the checkpoint before may be taken for one of this
        self._adapters.arena.master.fill_(float("nan"))
        self._booster.rollback(round=0)
        checkpoint.load(folder, self._adapters, self._booster)
        arena, boosters = self._adapters.arena, self._booster.ledger.boosters
        numbers = [[*vars(booster).values()] for booster in boosters]
        values = [arena.master, arena.live, *self._adapters.weights(), *(value for row in numbers for value in row)]
        return [self._booster.tape.to_bytes(), *(copy(value) for value in values)]


def copy(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


def same(ours: list, theirs: list) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other
        for mine, other in zip(ours, theirs, strict=True)
    )


def flip_a_bit(generator: random.Random, folder: Path, others: list[Path]) -> Path:
    with edited(generator, folder) as content:
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    return folder


class edited:
    """A context that gives the bytes of a file, any of the folder's, and writes them back."""

    def __init__(self, generator: random.Random, folder: Path):
        self._path = any_file(generator, folder)

    def __enter__(self) -> bytearray:
        self._content = bytearray(self._path.read_bytes())
        return self._content

    def __exit__(self, *_):
        self._path.write_bytes(self._content)


def any_file(generator: random.Random, folder: Path) -> Path:
    return generator.choice(sorted(folder.iterdir()))


def change_a_byte(generator, folder, others):
    with edited(generator, folder) as content:
        content[generator.randrange(len(content))] = generator.randrange(256)
    return folder


def truncate(generator, folder, others):
    with edited(generator, folder) as content:
        del content[generator.randrange(len(content)) :]
    return folder


def empty(generator, folder, others):
    any_file(generator, folder).write_bytes(b"")
    return folder


def extend(generator, folder, others):
    with edited(generator, folder) as content:
        content += generator.choice([b"\n", b"\0" * 512, generator.randbytes(generator.randrange(1, 99))])
    return folder


def zero_a_range(generator, folder, others):
    with edited(generator, folder) as content:
        start = generator.randrange(len(content))
        stop = generator.randrange(start, len(content)) + 1
        content[start:stop] = bytes(stop - start)
    return folder


def cut_out_a_range(generator, folder, others):
    with edited(generator, folder) as content:
        start = generator.randrange(len(content))
        del content[start : start + generator.randrange(1, 64)]
    return folder


def delete_a_file(generator, folder, others):
    any_file(generator, folder).unlink()
    return folder


def swap_two_files(generator, folder, others):
    first, second = generator.sample(sorted(folder.iterdir()), 2)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    return folder


def take_a_file_of_another_checkpoint(generator, folder, others):
    path = any_file(generator, folder)
    path.write_bytes((generator.choice(others) / path.name).read_bytes())
    return folder


def take_several_files_of_another_checkpoint(generator, folder, others):
    other, paths = generator.choice(others), sorted(folder.iterdir())
    for path in generator.sample(paths, generator.randrange(2, len(paths))):
        path.write_bytes((other / path.name).read_bytes())
    return folder


def take_everything_of_another_checkpoint(generator, folder, others):
    for path in folder.iterdir():
        path.unlink()
    shutil.copytree(generator.choice(others), folder, dirs_exist_ok=True)
    return folder


def add_a_stray_file(generator, folder, others):
    name = generator.choice(["notes.txt", "model.safetensors", ".hidden", "manifest.json.bak", "optimizer.bin"])
    (folder / name).write_bytes(generator.randbytes(generator.randrange(99)))
    return folder


def put_a_folder_in_the_place_of_a_file(generator, folder, others):
    path = any_file(generator, folder)
    path.unlink()
    path.mkdir()
    if generator.random() < 0.5:
        (path / "data.pkl").write_bytes(b"")
    return folder


def put_a_file_in_the_place_of_the_folder(generator, folder, others):
    shutil.rmtree(folder)
    folder.write_bytes(generator.randbytes(generator.randrange(99)))
    return folder


def rename_it(generator, folder, others):
    return folder.rename(folder.with_name(generator.choice(["checkpoint-12", "checkpoint-7", "kept", "checkpoint-x"])))


def exchange_the_names_of_two(generator, folder, others):
    neighbour, aside = folder.with_name("checkpoint-4"), folder.with_name("aside")
    folder.rename(aside)
    neighbour.rename(folder)
    aside.rename(neighbour)
    return generator.choice([folder, neighbour])


KINDS: list[Callable[[random.Random, Path, list[Path]], Path]] = [
    flip_a_bit,
    change_a_byte,
    truncate,
    empty,
    extend,
    zero_a_range,
    cut_out_a_range,
    delete_a_file,
    swap_two_files,
    take_a_file_of_another_checkpoint,
    take_several_files_of_another_checkpoint,
    take_everything_of_another_checkpoint,
    add_a_stray_file,
    put_a_folder_in_the_place_of_a_file,
    put_a_file_in_the_place_of_the_folder,
    rename_it,
    exchange_the_names_of_two,
]


@pytest.fixture
def damaged_run(tmp_path, checkpoints):
    """A function that gives the folder of a run with two whole checkpoints, anew at each call; to be damaged."""

    def make() -> Path:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        for name in ("of another step", "ours"):
            shutil.copytree(checkpoints[name], tmp_path / "run" / checkpoints[name].name)
        return tmp_path / "run"

    return make


def test_a_damaged_checkpoint_is_refused_in_one_line_or_gives_the_same_state(
    checkpoints, damaged_run, tiny_model_folder
):
    resumed = Resumed(tiny_model_folder, checkpoints["ours"])
    expected = resumed.load(checkpoints["ours"])
    others = [folder for name, folder in checkpoints.items() if name != "ours"]
    outcomes = Counter()
    for number in range(CORRUPTIONS):
        generator, kind = random.Random(number), KINDS[number % len(KINDS)]
        what = f"corruption {number}: {kind.__name__}"
        run = damaged_run()
        folder = kind(generator, run / "checkpoint-8", others)
        try:
            state = resumed.load(folder)
        except InputError as error:
            message = str(error)
            assert message.startswith(f"resume_from_checkpoint={folder}: "), what
            assert len(message.split(": ", 1)[1]) > 10, what
            assert message.isprintable(), what
            outcomes[kind.__name__, "refused"] += 1
        else:
            assert same(state, expected), what
            outcomes[kind.__name__, "the same"] += 1
        # `last` looks at every checkpoint, and must get past whatever lies there
        whole, passed_over = checkpoint.newest_whole(run)
        assert whole is None or checkpoint.verified_manifest(whole), what
        assert all(line.isprintable() for line in passed_over), what
    print(dict(outcomes))
    assert sum(outcomes.values()) == CORRUPTIONS
    refused = {name for name, outcome in outcomes if outcome == "refused"}
    assert refused == {kind.__name__ for kind in KINDS}
    # where nothing that counts was changed: files that are the same in both, a line end after the manifest, a name
    assert {"extend", "add_a_stray_file", "rename_it"} <= {name for name, outcome in outcomes if outcome == "the same"}


def truncate_tape(folder: Path) -> None:
    content = (folder / "tape.bin").read_bytes()
    (folder / "tape.bin").write_bytes(content[:-5])


DAMAGES = {
    "a torn tape": (truncate_tape, "tape.bin is damaged"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "there is no manifest.json in it"),
    "an empty scheduler": (lambda folder: (folder / "scheduler.pt").write_bytes(b""), "scheduler.pt is damaged"),
    "a stray file": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b""), "does not belong to it"),
    "another step's adapter": (
        lambda folder: shutil.copy(folder.with_name("checkpoint-4") / "adapters.safetensors", folder),
        "adapters.safetensors is damaged or was changed",
    ),
}


class TestCommand:
    """What the command says and does."""

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_checkpoint_is_refused_and_the_whole_one_beside_it_offered(
        self, run_in, damaged_run, capsys, damage
    ):
        folder = damaged_run()
        damage, said = DAMAGES[damage]
        damage(folder / "checkpoint-8")
        with pytest.raises(SystemExit) as exit:
            run_in(folder.with_name("new"), *FLAGS, f"--resume_from_checkpoint={folder / 'checkpoint-8'}")
        assert exit.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: resume_from_checkpoint={folder / 'checkpoint-8'}: ")
        assert said in line
        assert line.endswith(f"; {folder / 'checkpoint-4'} is whole")
        assert not folder.with_name("new").exists()

    def test_last_passes_over_the_damaged_one_with_a_warning_and_takes_the_one_before(
        self, checkpoints, run_in, damaged_run
    ):
        folder = damaged_run()
        truncate_tape(folder / "checkpoint-8")
        resumed = run_in(folder, *FLAGS, *SAVING, "--resume_from_checkpoint=last")
        assert f"passed over {folder / 'checkpoint-8'}: tape.bin is damaged or was changed" in resumed.log
        assert f"resuming from {folder / 'checkpoint-4'}" in resumed.log
        original = checkpoints["ours"].parent
        for name in ("tape.bin", "merges.jsonl"):
            assert (folder / name).read_bytes() == (original / name).read_bytes()
        # it was written anew
        assert checkpoint.verified_manifest(folder / "checkpoint-8")["step"] == 8

    def test_last_begins_again_where_every_checkpoint_is_damaged(self, checkpoints, run_in, damaged_run):
        folder = damaged_run()
        for name in ("checkpoint-4", "checkpoint-8"):
            truncate_tape(folder / name)
        resumed = run_in(folder, *FLAGS, *SAVING, "--resume_from_checkpoint=last")
        assert sum(line.startswith("passed over") for line in resumed.log) == 2
        assert "no whole checkpoint: starting from the beginning" in resumed.log
        original = checkpoints["ours"].parent
        for name in ("step_loss.csv", "tape.bin", "merges.jsonl"):
            assert (folder / name).read_bytes() == (original / name).read_bytes()

    def test_last_does_not_take_a_checkpoint_of_another_run(self, checkpoints, run_in, damaged_run, capsys):
        folder = damaged_run()
        shutil.rmtree(folder / "checkpoint-8")
        shutil.copytree(checkpoints["of another alpha"], folder / "checkpoint-8")
        with pytest.raises(SystemExit):
            run_in(folder, *FLAGS, *SAVING, "--resume_from_checkpoint=last")
        (line,) = capsys.readouterr().err.splitlines()
        assert "alpha is 8.0 there and 16.0 here" in line
        assert line.endswith(f"; {folder / 'checkpoint-4'} is whole")
