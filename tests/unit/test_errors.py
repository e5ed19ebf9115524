"""The public errors: which of them a retry can overcome."""

from __future__ import annotations

import inspect
import pickle

import pytest

import lualock
from lualock import errors, jobs
from lualock._protocol.resend import still_unknown
from lualock._transport.errors import reply_error

RETRYABLE = {
    lualock.LockError: False,
    lualock.InvalidArgument: False,
    lualock.NotAcquired: True,
    lualock.QueueFull: True,
    lualock.SelfDeadlock: False,
    lualock.LeaseLost: False,
    lualock.StaleFence: False,
    lualock.LockUnavailable: True,
    lualock.AccessDenied: False,
    lualock.EmbeddedUnavailable: False,
    lualock.KeyConflict: False,
    lualock.UnsupportedServer: False,
    jobs.RetryLater: True,
    jobs.Superseded: False,
}


def test_every_error_is_in_the_table() -> None:
    """A new public error must say whether a retry can succeed."""
    public = [*vars(errors).values(), *(getattr(jobs, name) for name in jobs.__all__)]
    found = {one for one in public if inspect.isclass(one) and issubclass(one, Exception)}
    assert found == {*RETRYABLE}


@pytest.mark.parametrize("kind", RETRYABLE, ids=lambda kind: kind.__name__)
def test_retryable(kind: type[lualock.LockError]) -> None:
    """Each error says whether the same call may succeed later, also in another process."""
    error = kind("text")
    print(f"{kind.__name__}: retryable={error.retryable}")  # noqa: T201
    assert error.retryable is RETRYABLE[kind]
    error.retryable = not error.retryable
    assert pickle.loads(pickle.dumps(error)).retryable is not RETRYABLE[kind]


@pytest.mark.parametrize(
    ("reply", "retryable"),
    [
        *(("OOM command not allowed", True), ("LOADING", True), ("ERR something else", True)),
        *(("MOVED 1 x:1", False), ("CROSSSLOT Keys", False), ("NOPERM no permissions", False)),
        *(("ASK 1 x:1", False), ("TRYAGAIN Multiple keys", True), ("CLUSTERDOWN", True)),
        ("ERR DB index is out of range", False),
    ],
)
def test_an_error_reply(reply: str, retryable: bool) -> None:
    """A retry cannot succeed at a server that lualock does not support, or that denies access."""
    assert reply_error(reply).retryable is retryable


@pytest.mark.parametrize("kind", [lualock.LockUnavailable, lualock.AccessDenied])
def test_a_repeated_request_is_as_retryable_as_its_last_error(
    kind: type[lualock.LockUnavailable],
) -> None:
    """A request whose reply was lost is not worth a retry if its repetition was denied."""
    lost = lualock.LockUnavailable("the reply was lost", outcome_unknown=True)
    error = still_unknown(lost, kind("refused"))
    assert (error.outcome_unknown, error.retryable) == (True, RETRYABLE[kind])
