"""Send a request once more if its reply was lost.

If no reply comes for a while, the driver also sends it on a fresh connection (*hedging*).
"""

from __future__ import annotations

from typing import Any

from lualock._protocol.effects import RunScript, Steps
from lualock.errors import LockUnavailable


def resend(step: RunScript, error: LockUnavailable) -> Steps[Any]:
    """Send a call once more if its reply was lost; else raise the error."""
    if not error.outcome_unknown:
        raise error
    try:
        return (yield step)
    except LockUnavailable as second:
        raise still_unknown(error, second) from second


def still_unknown(first: LockUnavailable, second: LockUnavailable) -> LockUnavailable:
    """Make the error for a request that was repeated: the first one may have been executed."""
    if second.outcome_unknown:
        return second
    error = LockUnavailable(
        f"{first}; the repeated request failed, too: {second}", outcome_unknown=True
    )
    error.retryable = second.retryable
    return error


def ask_again(step: RunScript) -> Steps[Any]:
    """Return the reply to a call, or to its repetition if that reply was lost."""
    try:
        return (yield step)
    except LockUnavailable as error:
        return (yield from resend(step, error))
