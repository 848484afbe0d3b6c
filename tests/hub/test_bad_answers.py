"""What the hub does badly: one line that says what to do, or a retry that goes on; and never a damaged file."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.hub import repositories
from tests.hub.server import Answer, Fault, Repository
from tests.hub.session import CHUNK, Ending

FLAGS = (
    *("--num_train=8", "--num_dev=2", "--num_eval=4", "--max_steps=2"),
    *("--use_cpu=true", "--dtype=float32", "--disable_tqdm=true"),
)
ALWAYS = 1000
DATA = "google/boolq"


def too_many(answer: Answer) -> Answer:
    return Answer(429, {"Retry-After": "7"})


def broken(answer: Answer) -> Answer:
    return Answer(503)


def dropped(answer: Answer) -> Answer:
    return replace(answer, drop_after=len(answer.body) // 2)


def damaged(answer: Answer) -> Answer:
    return replace(answer, body=answer.body[:-5] + bytes([answer.body[-5] ^ 16]) + answer.body[-4:])


def shortened(answer: Answer) -> Answer:
    return replace(answer, body=answer.body[:-100])


def silent(answer: Answer) -> Answer:
    return replace(answer, never=True)


def assert_refused(ending: Ending, *said: str) -> None:
    """The last line, and no other, is an error, and says all of `said`."""
    assert ending.status == 2, ending
    assert ending.errors[-1].startswith("error: ")
    assert [line for line in ending.errors if line.startswith(("error", "Traceback"))] == ending.errors[-1:]
    for part in said:
        assert part in ending.errors[-1]


@pytest.fixture
def model(hub, tiny_model_folder) -> Callable[..., Repository]:
    """A function `(**settings)` that puts a model on the hub that no other test has: no file of it is in the cache."""

    def add(**settings: bool) -> Repository:
        repository = repositories.model(f"nobody/model-{len(hub.repositories)}", tiny_model_folder, **settings)
        hub.add(repository)
        return repository

    yield add
    hub.faults.clear()


@pytest.fixture
def look(session, hub, tmp_path):
    """A function `(name, task)` that runs `xgblora-train --dry_run`, which loads the model and the data.

    What the hub is asked begins anew.
    """

    def run(name: str, task: str = "SST2") -> Ending:
        hub.requests.clear()
        folder = tmp_path / "run"
        words = (f"--model_name={name}", f"--task_name={task}", *FLAGS, f"--output_dir={folder}", "--dry_run=true")
        ending = session.run("train", *words)
        assert not folder.exists()
        return ending

    return run


@pytest.fixture
def nothing_cached(session, hub):
    """Nothing of `DATA` is in the cache, before and after the test."""

    def remove() -> None:
        for folder in ("hub/datasets--google--boolq", "datasets/google___boolq"):
            shutil.rmtree(session.home / folder, ignore_errors=True)

    remove()
    yield
    hub.faults.clear()
    remove()


def test_a_name_that_is_not_there(look):
    assert_refused(look("nobody/nothing"), "model_name=nobody/nothing: ", "nothing of this name", "hf auth login")


def test_a_gated_model(look, model):
    assert_refused(look(model(gated=True).name), "gated", "ask for access", "hf auth login")


# which requests, what is done to the answers, what is said
REFUSED = {
    "too many requests": ("HEAD", too_many, "wait 7 s"),
    "an error of the hub": ("HEAD", broken, "error of its own, 503"),
    "no answer": ("HEAD", silent, "does not answer"),
    "no answer to large files": ("GET /large", silent, "does not answer"),
    "another size": ("GET /large", shortened, "another size"),
    "other bytes": ("GET /large", damaged, "model.safetensors came damaged"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_model_that_cannot_be_had_is_one_line_and_the_same_command_goes_on(look, hub, model, what):
    asked, change, *said = REFUSED[what]
    name = model().name
    # the data are there before
    assert look(repositories.MODEL).status == 0
    hub.faults.append(Fault(asked.replace("HEAD", f"HEAD /{name}"), change, ALWAYS))
    assert_refused(look(name), f"model_name={name}: ", *said, "the same command again")
    hub.faults.clear()
    ending = look(name)
    assert ending.status == 0, ending.errors
    if asked != "HEAD":
        # the configuration came the first time, and only the weights are asked for again
        files = [request for request in hub.requests if request.startswith(("GET /large", "GET /api/resolve-cache"))]
        assert [request.startswith("GET /large") for request in files] in ([True], [True, False]), files


@pytest.mark.parametrize("change", [too_many, broken, silent])
def test_what_goes_wrong_once_is_waited_for(look, hub, model, change):
    hub.faults += [Fault("HEAD", change, 2)]
    ending = look(model().name)
    assert ending.status == 0, ending.errors


def test_a_wait_is_as_long_as_the_hub_says(look, hub, model):
    name = model().name
    hub.faults += [Fault("GET /large-files", too_many, 1)]
    ending = look(name)
    assert ending.status == 0, ending.errors
    # one second for rounding
    assert any("Waiting 8.0s" in line for line in ending.errors)


def test_a_connection_that_drops_goes_on_where_it_was(look, hub, model):
    repository = model()
    size = len(repository.branches["main"]["model.safetensors"])
    hub.faults += [Fault("GET /large-files", dropped, 2)]
    ending = look(repository.name)
    assert ending.status == 0, ending.errors
    first = size // 2 // CHUNK * CHUNK
    second = first + (size - first) // 2 // CHUNK * CHUNK
    assert [request.split()[2:] for request in hub.requests if request.startswith("GET /large-files")] == [
        [],
        [f"bytes={first}-"],
        [f"bytes={second}-"],
    ]


OF_DATA = {
    "too many requests": ("HEAD /datasets/google", too_many, "too many requests", "--data_dir"),
    "an error of the hub": ("HEAD /datasets/google", broken, "error of its own, 503", "--data_dir"),
    "no answer": ("HEAD /datasets/google", silent, "does not answer", "--data_dir"),
    "another size": ("GET /large", shortened, "another size", "--data_dir"),
    "other bytes": ("GET /large", damaged, "parquet came damaged"),
}


@pytest.mark.parametrize("what", OF_DATA)
def test_a_data_set_that_cannot_be_had_is_one_line_and_the_same_command_goes_on(look, hub, nothing_cached, what):
    asked, change, *said = OF_DATA[what]
    hub.faults.append(Fault(asked, change, ALWAYS))
    assert_refused(look(repositories.MODEL, "BoolQ"), f"data set {DATA}: ", *said)
    hub.faults.clear()
    ending = look(repositories.MODEL, "BoolQ")
    assert ending.status == 0, ending.errors


def test_a_shard_of_data_that_drops_goes_on_where_it_was(look, hub, nothing_cached):
    hub.faults.append(Fault("GET /large-files", dropped, 1))
    ending = look(repositories.MODEL, "BoolQ")
    assert ending.status == 0, ending.errors
    assert any(" bytes=" in request for request in hub.requests)


def test_a_run_keeps_to_the_commit_of_its_base(session, hub, model, tmp_path):
    repository, folder = model(), tmp_path / "run"
    words = (f"--model_name={repository.name}", "--task_name=SST2", *FLAGS, f"--output_dir={folder}")
    ending = session.run("train", *words, "--xgblora_steps_per_iteration=1", "--save_model=false")
    assert ending.status == 0, ending.errors
    kept = json.loads((folder / "base.json").read_text(encoding="utf-8"))
    assert kept["facts"]["files"] == repository.commit("main")
    before = repository.branches["main"]
    hub.add(replace(repository, branches={"main": {**before, "model.safetensors": b"another"}, "before": before}))
    ending = session.run("replay", folder, "--use_cpu=true")
    assert ending.status == 0, ending.errors
    assert "verified: the weights are bit for bit those of the run" in ending.output
