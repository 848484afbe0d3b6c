"""The hub on loopback, and the process whose hub it is."""

import pytest

from tests.hub import repositories
from tests.hub.server import HubServer
from tests.hub.session import Session


@pytest.fixture(scope="session")
def hub(tiny_model_folder):
    """The server, with a tiny OPT and all data sets; what a test adds to it, it gives a name of its own."""
    server = HubServer([*repositories.data_sets(), repositories.model(repositories.MODEL, tiny_model_folder)])
    yield server
    server.close()


@pytest.fixture(scope="session")
def session(hub, tmp_path_factory):
    """A process that runs commands."""
    process = Session(hub.url, tmp_path_factory.mktemp("session"))
    yield process
    process.close()
