"""Inspect a lock."""

from __future__ import annotations

from lualock._core.keys import display_name
from lualock._core.options import split_holder_info
from lualock._protocol.effects import RunScript, Steps
from lualock._protocol.replies import LockInfo, conflict, seconds
from lualock._protocol.resend import ask_again
from lualock.scripts import SCRIPTS

INSPECT = SCRIPTS["inspect"]


def inspect(name: str | bytes, key: bytes, queue: bytes) -> Steps[LockInfo]:
    """Return the state of the lock."""
    reply = yield from ask_again(RunScript(INSPECT, (key, queue)))
    shown = display_name(name)
    if reply[0] == b"free":
        return LockInfo(shown, held=False, waiters=reply[1])
    if reply[0] != b"held":
        raise conflict(key)
    holder, metadata = split_holder_info(reply[4])
    return LockInfo(
        shown,
        held=True,
        holder=holder,
        metadata=metadata,
        fence=int(reply[3]),
        held_s=reply[2] / 1000,
        remaining_s=seconds(reply[1]),
        waiters=reply[5],
    )
