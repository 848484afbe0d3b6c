"""Why the hub gave nothing, out of the errors that its clients raise; tests/hub has the true ones."""

from types import SimpleNamespace

import pytest

from xgblora.hub_downloads import reason


def raised(cause: Exception, status: int | None = None, **headers: str) -> Exception:
    """An error that was raised after `cause`, of an answer with `status`."""
    if status is not None:
        cause.response = SimpleNamespace(status_code=status, headers=headers)
    error = OSError("could not be loaded")
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (raised(ValueError(), 401), "hf auth login"),
        (raised(ValueError(), 429), "wait a while"),
        (raised(ValueError(), 429, **{"Retry-After": "30"}), "wait 30 s"),
        (raised(ValueError(), 502), "error of its own, 502"),
        (raised(ConnectionError("no route")), "cannot be reached"),
        (ConnectionError("offline mode is enabled"), "offline mode is enabled"),
        (raised(ValueError("of another kind")), "could not be loaded"),
    ],
)
def test_the_reason(error, said):
    assert said in reason(error)
