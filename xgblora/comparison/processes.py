"""Several processes compare together: each run is one of as many processes, and each of them starts one of those.

The first one decides what is run, writes and draws; the others take part in each run and leave nothing.
"""

import os
import socket
from collections.abc import Callable

from xgblora.process_group import ProcessGroup, process_number, started

# seconds that the others may take longer for a run
_PATIENCE = 1800.0


def turns() -> Callable[[str | None], str | None]:
    """A function of the name of the next run, None at the end, to the one that all run; each process calls it as often.

    What others than the first name is dropped. From then on the environment says where the processes of that run meet.
    It raises ProcessFailure if a process is gone.
    """
    if started() == 1:
        return lambda name: name
    group = ProcessGroup(process_number(), started(), "cpu", _PATIENCE)

    def turn(name: str | None) -> str | None:
        name, port = group.of_first((name, _unused_port()))
        # not where those of the comparison met, and left what they are known by
        os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="False")
        return name

    return turn


def _unused_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]
