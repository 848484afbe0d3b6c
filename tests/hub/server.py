"""A hub on loopback: what huggingface_hub and datasets ask of huggingface.co, for repositories in memory.

Small files are answered after a relative redirect, large ones by an absolute redirect to where their bytes are, as the
hub does it. What goes wrong is put into `HubServer.faults`.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

_REPOSITORY = r"(?P<name>[^/]+/[^/]+)"
_RESOLVE = re.compile(rf"/(?P<kind>datasets/)?{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_SMALL = re.compile(r"/api/resolve-cache/(?P<oid>\w+)/(?P<commit>\w+)")
_LARGE = re.compile(r"/large-files/(?P<oid>\w+)")
_INFO = re.compile(rf"/api/(?P<kind>models|datasets)/{_REPOSITORY}(/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(rf"/api/(?P<kind>models|datasets)/{_REPOSITORY}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?")
_PATHS = re.compile(rf"/api/(?P<kind>models|datasets)/{_REPOSITORY}/paths-info/(?P<revision>[^/]+)")


@dataclass(frozen=True)
class Repository:
    """A repository: its kind, models or datasets; its branches with the bytes of their files; whether it is gated."""

    kind: str
    name: str
    branches: dict[str, dict[str, bytes]]
    gated: bool = False

    def branch_of(self, revision: str) -> str | None:
        """The branch that is called `revision`, or whose newest commit that is."""
        return next((name for name in self.branches if revision in (name, self.commit(name))), None)

    def commit(self, branch: str) -> str:
        files = sorted((path, oid(path, content)) for path, content in self.branches[branch].items())
        return hashlib.sha1(json.dumps([self.name, files]).encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What the server sends.

    Attributes:
        drop_after: after so many bytes of the body the connection ends.
        never: nothing is sent, and the connection stays.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    drop_after: int | None = None
    never: bool = False


@dataclass
class Fault:
    """What is done to the next `times` answers to requests, "GET /path", in which `asked` is found."""

    asked: str
    change: Callable[[Answer], Answer]
    times: int


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".parquet"))


def oid(path: str, content: bytes) -> str:
    """The sha256 of a large file, git's sha1 of others: by it the hub names a file's content, in its ETag too."""
    if is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class HubServer(ThreadingHTTPServer):
    """The server: serves from a thread of its own until `close`; `requests` are those that it got, "GET /path"."""

    daemon_threads = True

    def __init__(self, repositories: list[Repository]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.contents: dict[str, bytes] = {}
        for one in repositories:
            self.add(one)
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repository: Repository) -> None:
        """Hold `repository` too, in place of one that has its name."""
        self.repositories[repository.kind, repository.name] = repository
        for files in repository.branches.values():
            self.contents |= {oid(path, content): content for path, content in files.items()}

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def answer(self, method: str, target: str, headers: Message, body: bytes) -> Answer:
        """The answer to a request, after the faults that it meets."""
        asked = " ".join(filter(None, (method, target, headers.get("Range"))))
        self.requests.append(asked)
        answer = self._true_answer(urlsplit(target), headers, body)
        for fault in self.faults:
            if fault.times and fault.asked in asked:
                fault.times -= 1
                return fault.change(answer)
        return answer

    def _true_answer(self, target: SplitResult, headers: Message, body: bytes) -> Answer:
        path, query = target.path, parse_qs(target.query)
        if found := _SMALL.fullmatch(path) or _LARGE.fullmatch(path):
            commit = {"X-Repo-Commit": found["commit"]} if "commit" in found.groupdict() else {}
            return _part(found["oid"], self.contents[found["oid"]], headers.get("Range"), commit)
        for pattern, respond in (
            (_RESOLVE, self._resolve),
            (_PATHS, lambda *found: _paths(*found, parse_qs(body.decode())["paths"])),
            (_TREE, lambda *found: _tree(*found, recursive="true" in map(str.lower, query.get("recursive", ())))),
            (_INFO, _info),
        ):
            if found := pattern.fullmatch(path):
                return self._in_repository(found, respond)
        return Answer(404)

    def _in_repository(self, found: re.Match, respond: Callable[..., Answer]) -> Answer:
        # a model's files have no kind in their address
        kind = (found["kind"] or "models").rstrip("/")
        repository = self.repositories.get((kind, found["name"]))
        if repository is None:
            return Answer(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if repository.gated and respond == self._resolve:
            return Answer(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to it is restricted."})
        branch = repository.branch_of(unquote(found["revision"] or "main"))
        if branch is None:
            return Answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        return respond(repository, branch, unquote(found.groupdict().get("path") or ""))

    def _resolve(self, repository: Repository, branch: str, path: str) -> Answer:
        commit = {"X-Repo-Commit": repository.commit(branch)}
        content = repository.branches[branch].get(path)
        if content is None:
            return Answer(404, {**commit, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        name = oid(path, content)
        if is_large(path):
            linked = {"X-Linked-Etag": f'"{name}"', "X-Linked-Size": str(len(content))}
            # another host, as the hub's: the client does not look for a commit there
            elsewhere = self.url.replace("127.0.0.1", "localhost")
            return Answer(302, {**commit, **linked, "Location": f"{elsewhere}/large-files/{name}"})
        return Answer(307, {**commit, "Location": f"/api/resolve-cache/{name}/{repository.commit(branch)}"})


def _part(name: str, content: bytes, asked: str | None, about: dict[str, str]) -> Answer:
    """The bytes `asked` for, "bytes=START-END" or "bytes=START-", of the file called `name`; all without it."""
    headers = {**about, "ETag": f'"{name}"', "Accept-Ranges": "bytes"}
    if asked is None:
        return Answer(200, headers, content)
    first, _, last = asked.removeprefix("bytes=").partition("-")
    start, end = int(first), int(last) + 1 if last else len(content)
    part = content[start:end]
    return Answer(206, {**headers, "Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"}, part)


def _json(value: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _info(repository: Repository, branch: str, path: str) -> Answer:
    return _json(
        {
            "_id": "0",
            "id": repository.name,
            "sha": repository.commit(branch),
            "private": False,
            "gated": "auto" if repository.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "createdAt": "2022-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": name} for name in sorted(repository.branches[branch])],
        }
    )


def _entry(path: str, content: bytes) -> dict:
    name = oid(path, content)
    entry = {"type": "file", "path": path, "size": len(content), "oid": name}
    return {**entry, "lfs": {"oid": name, "size": len(content), "pointerSize": 134}} if is_large(path) else entry


def _folders(repository: Repository, branch: str) -> list[dict]:
    parts = [path.split("/")[:-1] for path in repository.branches[branch]]
    names = {"/".join(folders[:depth]) for folders in parts for depth in range(1, len(folders) + 1)}
    return [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(names)]


def _tree(repository: Repository, branch: str, path: str, *, recursive: bool) -> Answer:
    prefix = f"{path}/" if path else ""
    entries = [*_folders(repository, branch), *map(_entry, *zip(*repository.branches[branch].items(), strict=True))]
    below = [entry for entry in entries if entry["path"].startswith(prefix)]
    if path and not below:
        return Answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
    return _json([entry for entry in below if recursive or "/" not in entry["path"].removeprefix(prefix)])


def _paths(repository: Repository, branch: str, path: str, wanted: list[str]) -> Answer:
    entries = [*_folders(repository, branch), *map(_entry, *zip(*repository.branches[branch].items(), strict=True))]
    return _json([entry for entry in entries if entry["path"] in wanted])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.server.answer(self.command, self.path, self.headers, body)
        if answer.never:
            self.server.closing.wait()
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: answer.drop_after])
        self.close_connection = self.close_connection or answer.drop_after is not None

    do_GET = do_HEAD = do_POST = _respond

    def log_message(self, *arguments: object) -> None:
        """Nothing: what was asked is in `HubServer.requests`."""
