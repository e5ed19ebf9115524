"""Decide what is sent, in which order, and what each reply means. Sans-IO.

Every operation is a generator that yields effects and is sent their results. It has no socket, no
clock and no randomness of its own; the drivers have them, so the same logic serves threads, asyncio
and the simulator. ``effects`` defines what a driver must be able to do; each group of verbs has a
file of its own.

* A driver sends the result of an effect in, or throws the error in: every exception but
  ``GeneratorExit``, which Python raises when a generator will not be finished.
* Every script is idempotent by token. A request whose reply was lost is sent once more, on a fresh
  connection; if that fails as well, the outcome is unknown, and the error says so.
* A deadline is counted from *before* the request was sent, so it never ends after the server's.
* If acquiring is interrupted after a request was sent, the token is abandoned before the
  interruption goes on. A failure of that never replaces the interruption.
"""

from lualock._protocol.abandon import ABANDON, WAIT, abandon_request
from lualock._protocol.acquire import acquire, undo
from lualock._protocol.adopt import ADOPT, adopt, take
from lualock._protocol.attempt import ACQUIRE, CLAIM
from lualock._protocol.effects import (
    DRIVER_WRITES,
    MIN_REQUEST_S,
    AwaitMessage,
    CleanupLater,
    Clock,
    Effect,
    PendingReply,
    Pipeline,
    RunScript,
    SendScript,
    Steps,
    Subscribe,
    T,
    watched,
)
from lualock._protocol.extend import EXTEND, extend, extend_all, worst
from lualock._protocol.force_release import FORCE_RELEASE, force_release
from lualock._protocol.inspect import INSPECT, inspect
from lualock._protocol.keep import keep_for, release_later
from lualock._protocol.lease_state import LeaseState
from lualock._protocol.release import (
    HAND_OVER,
    RELEASE,
    hand_over,
    leave,
    note,
    release,
    unconfirmed,
)
from lualock._protocol.replies import LockInfo, conflict
from lualock._protocol.request import AcquireRequest, MultiRequest
from lualock._protocol.resend import resend
from lualock._protocol.schedule import CHECK_LATE_S, CLAIM_MS
from lualock._protocol.server_clock import ServerClock
from lualock._protocol.stop_request import (
    RELEASE_REQUESTED,
    REQUEST_RELEASE,
    WITHDRAW,
    release_requested,
    request_release,
    withdraw,
)
from lualock._protocol.wait import abandon, claim, wait

__all__ = [
    "ABANDON",
    "ACQUIRE",
    "ADOPT",
    "CHECK_LATE_S",
    "CLAIM",
    "CLAIM_MS",
    "DRIVER_WRITES",
    "EXTEND",
    "FORCE_RELEASE",
    "HAND_OVER",
    "INSPECT",
    "MIN_REQUEST_S",
    "RELEASE",
    "RELEASE_REQUESTED",
    "REQUEST_RELEASE",
    "WAIT",
    "WITHDRAW",
    "AcquireRequest",
    "AwaitMessage",
    "CleanupLater",
    "Clock",
    "Effect",
    "LeaseState",
    "LockInfo",
    "MultiRequest",
    "PendingReply",
    "Pipeline",
    "RunScript",
    "SendScript",
    "ServerClock",
    "Steps",
    "Subscribe",
    "T",
    "abandon",
    "abandon_request",
    "acquire",
    "adopt",
    "claim",
    "conflict",
    "extend",
    "extend_all",
    "force_release",
    "hand_over",
    "inspect",
    "keep_for",
    "leave",
    "note",
    "release",
    "release_later",
    "release_requested",
    "request_release",
    "resend",
    "take",
    "unconfirmed",
    "undo",
    "wait",
    "watched",
    "withdraw",
    "worst",
]
