"""Release a lock, or hand it over to the next waiter."""

from __future__ import annotations

from lualock._core.keys import display_name
from lualock._protocol.abandon import give_back
from lualock._protocol.effects import RunScript, Steps
from lualock._protocol.lease_state import LeaseState
from lualock._protocol.replies import lost
from lualock._protocol.request import AcquireRequest
from lualock._protocol.resend import resend
from lualock.errors import LockError, LockUnavailable
from lualock.scripts import SCRIPTS

RELEASE = SCRIPTS["release"]
HAND_OVER = SCRIPTS["hand_over"]


def release(request: AcquireRequest, state: LeaseState) -> Steps[None]:
    """Release the lock. Repeating a release that was executed succeeds.

    :raises LeaseLost: the lease had ended before; nothing was changed.
    :raises LockUnavailable: the server did not answer, or the outcome is unknown.
    """
    repeated = False
    try:
        if state.waited:
            step = hand_over(request, state)
        else:
            step = RunScript(RELEASE, (request.key, state.lease_id))
        try:
            reply = yield step
        except LockUnavailable as error:
            repeated = True
            reply = yield from resend(step, error)
        if reply == b"waited":  # waiters have come since the lease began
            step = hand_over(request, state)
            try:
                reply = yield step
            except LockUnavailable as error:
                repeated = True
                reply = yield from resend(step, error)
        repeated = repeated or step.doubled
    except GeneratorExit:
        raise
    except LockUnavailable:
        # The holder goes on; the lock is released in the background when the server answers.
        state.release_unknown()
        if state.fence:
            yield from give_back(request, b"", None)
        raise
    except LockError:
        raise
    except BaseException:
        # Cancelled or interrupted: release the lock all the same.
        state.mark_released()
        yield from give_back(request, b"", None)
        raise
    if type(reply) is bytes and reply != b"missing":
        state.released = True  # not mark_released(): a call costs each block 0.5 %
        return
    if repeated and reply[0] != b"conflict":
        # The first request may have released the lease, or it may have ended before. The server
        # remembers only the previous token, so this is not the same as "it had ended".
        state.release_unknown()
        raise unconfirmed(request)
    if reply[0] != b"conflict":
        state.mark_lost()
    raise lost(request.name, request.key, reply, "released")


def unconfirmed(request: AcquireRequest) -> LockUnavailable:
    """Make the error for a release that may have been executed."""
    return LockUnavailable(
        f"could not confirm the release of lock {display_name(request.name)!r}: the reply was "
        "lost, and the lease is gone (it was released, or had expired before). "
        "Check the last work under the lock if it must not overlap",
        outcome_unknown=True,
    )


def hand_over(request: AcquireRequest, state: LeaseState) -> RunScript:
    """Make the request that releases a lock with waiters."""
    return RunScript(HAND_OVER, (request.key, request.queue, state.lease_id))


def leave(steps: Steps[None], body_error: BaseException | None) -> Steps[None]:
    """Release at the end of a ``with`` body, without hiding the exception of the body."""
    try:
        yield from steps
    except LockError as error:
        if body_error is None:
            raise
        note(body_error, f"and then: {error}")


def note(error: BaseException, text: str) -> None:
    """Attach a line to an exception, as :meth:`BaseException.add_note` does from Python 3.11."""
    if hasattr(error, "add_note"):
        error.add_note(text)
    else:
        vars(error)["__notes__"] = [*getattr(error, "__notes__", []), text]
