"""Send a request once more where its reply was lost."""

from __future__ import annotations

from typing import Any

from lualock._protocol.effects import RunScript, Steps
from lualock.errors import LockUnavailable


def resend(step: RunScript, error: LockUnavailable) -> Steps[Any]:
    """Send a call again, once, where its reply was lost; else raise what went wrong."""
    if not error.outcome_unknown:
        raise error
    try:
        return (yield step)
    except LockUnavailable as second:
        raise still_unknown(error, second) from second


def still_unknown(first: LockUnavailable, second: LockUnavailable) -> LockUnavailable:
    """The error for a request that was repeated: whatever became of the second, the first may have
    been carried out."""
    if second.outcome_unknown:
        return second
    return LockUnavailable(
        f"{first}; the repeated request failed, too: {second}", outcome_unknown=True
    )


def ask_again(step: RunScript) -> Steps[Any]:
    """The reply to a call; where it was lost, to a second one."""
    try:
        return (yield step)
    except LockUnavailable as error:
        return (yield from resend(step, error))
