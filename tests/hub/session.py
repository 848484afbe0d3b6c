"""A process that knows the hub on loopback for the real one, and runs command after command: starts take longest."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# bytes that the hub's client takes at a time, 10 MB elsewhere
CHUNK = 1 << 8

_PROGRAM = """
import importlib, json, os, sys, time, types
import huggingface_hub.file_download, huggingface_hub.utils._http
for module in (huggingface_hub.file_download, huggingface_hub.utils._http):
    # how long it would wait before it asks again, it says
    module.time = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
huggingface_hub.file_download._ETAG_RETRY_TIMEOUT = huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT = 0.3
# of so many bytes; what comes of the last piece before a connection drops is lost
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = CHUNK
answers = os.fdopen(int(sys.argv[1]), "w")
for line in sys.stdin:
    command, words = json.loads(line)
    try:
        importlib.import_module(f"xgblora.cli.{command}").main(words)
        status = 0
    except SystemExit as exit:
        status = exit.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    print(status, file=answers, flush=True)
"""


@dataclass(frozen=True)
class Ending:
    """How a command ended, and what it said."""

    status: int
    output: str
    errors: list[str]


def environment(hub: str, home: Path) -> dict[str, str]:
    """That of a process whose hub is at the address `hub`, and which keeps what it downloads in `home`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    settings = {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(home),
        # seconds
        "HF_HUB_ETAG_TIMEOUT": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return {**own, **settings}


class Session:
    """The process. `run` runs one of xgblora's commands in it, in the folder `folder`."""

    def __init__(self, hub: str, folder: Path):
        self.home = folder / "home"
        self._output, self._errors = folder / "stdout", folder / "stderr"
        reading, writing = os.pipe()
        with open(self._output, "wb") as output, open(self._errors, "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"CHUNK = {CHUNK}\n{_PROGRAM}", str(writing)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                pass_fds=[writing],
                env=environment(hub, self.home),
                cwd=folder,
                text=True,
            )
        os.close(writing)
        self._answers = os.fdopen(reading)

    def run(self, command: str, *words: object) -> Ending:
        """Run `xgblora-COMMAND WORDS`."""
        before = [path.stat().st_size for path in (self._output, self._errors)]
        self._process.stdin.write(json.dumps([command, list(map(str, words))]) + "\n")
        self._process.stdin.flush()
        answer = self._answers.readline()
        output, errors = (
            path.read_bytes()[start:].decode() for path, start in zip((self._output, self._errors), before, strict=True)
        )
        assert answer, f"the process ended: {errors}"
        return Ending(int(answer), output, errors.splitlines())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._answers.close()
