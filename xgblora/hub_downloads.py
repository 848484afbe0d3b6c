"""Why the hub did not give a file, in one line, and whether a file that came holds what the hub announced.

huggingface_hub 2.4 compares the size of what comes by HTTP, not its content. In its cache a file is named by the digest
that the hub announced: sha256 where it is large, git's sha1 where it is not.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from xgblora.errors import InputError
from xgblora.spelling import one_line

_AGAIN = "give the same command again, what has come is kept"
# how long a file system's clock may be behind, in seconds
_CLOCKS_APART = 1.0
_CHUNK = 1 << 20


def reason(error: BaseException) -> str:
    """What `error`, of huggingface_hub, transformers or datasets, says of the hub; its own message if nothing."""
    causes = list(_causes(error))
    kinds = {type(cause).__name__ for cause in causes}
    answers = [cause.response for cause in causes if getattr(cause, "response", None) is not None]
    status = answers[0].status_code if answers else 0
    if "GatedRepoError" in kinds:
        return "it is gated: ask for access on its page of the hub, and log in by `hf auth login`"
    if "RepositoryNotFoundError" in kinds or status in (401, 403):
        return "the hub has nothing of this name, or it is private: then log in by `hf auth login`"
    if status == 429:
        seconds = answers[0].headers.get("Retry-After")
        return f"the hub had too many requests from here: wait {f'{seconds} s' if seconds else 'a while'}, and {_AGAIN}"
    if status >= 500:
        return f"the hub answers with an error of its own, {status}: {_AGAIN}"
    if any("Consistency check failed" in str(cause) for cause in causes):
        return f"a file came with another size than the hub announced: {_AGAIN}"
    # of httpx and its successor, whichever the hub's client has; ConnectionError is what datasets makes of them
    unreached = any("Timeout" in kind for kind in kinds) or kinds & {"ConnectError", "ReadError", "ConnectionError"}
    if unreached and "offline mode is enabled" not in str(error):
        return f"the hub cannot be reached or does not answer: {_AGAIN}"
    return one_line(error, limit=300)


def refuse_damaged(kind: str, name: str, what: str, since: float) -> None:
    """Raise InputError if a file that came from the hub is not the one that it announced; the file is removed.

    Args:
        kind: "model" or "dataset".
        name: of the repository; nothing is looked at if it is a folder's.
        what: the line begins with it.
        since: seconds since the epoch; files that were there before are believed, as they were looked at then.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    if Path(name).is_dir() or not (folder / "blobs").is_dir():
        return
    came = [file for file in (folder / "blobs").iterdir() if file.stat().st_mtime >= since - _CLOCKS_APART]
    damaged = [file for file in came if _digest_of(file, len(file.name)) not in (None, file.name)]
    if damaged:
        called = [_name_in(folder, file) for file in damaged]
        for file in damaged:
            file.unlink()
        raise InputError(
            f"{what}: {called[0]} came damaged from the hub, its digest is not the announced one: {_AGAIN}"
        )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, and what it was raised from or after; the innermost first, which knows most."""
    if error is not None:
        yield from _causes(error.__cause__ or error.__context__)
        yield error


def _digest_of(file: Path, digits: int) -> str | None:
    """The digest of so many hexadecimal digits by which the hub names this content; None: it is no such digest."""
    if digits == 64:
        digest = hashlib.sha256()
    elif digits == 40:
        digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    else:
        return None
    with open(file, "rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _name_in(folder: Path, blob: Path) -> str:
    """What the file is called in its repository."""
    links = (path for path in (folder / "snapshots").rglob("*") if path.resolve() == blob.resolve())
    return next((link.relative_to(folder / "snapshots").as_posix().partition("/")[2] for link in links), blob.name)
