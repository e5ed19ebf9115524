"""Layer 2: what is sent, in which order, and what each reply means. Sans-IO.

Every operation is a generator that yields steps and is sent their replies. It has no socket, no
clock and no randomness of its own; the drivers have them, so one logic serves threads, asyncio
and the simulator. ``steps`` says what a driver must be able to do, ``replies`` what a reply means,
``holding`` has the verbs of a holder, ``waiting`` how a lock is acquired, ``passing`` how a lease
is passed on. Rules that hold here:

* A driver sends the reply of a step in, or throws whatever went wrong in: every exception, but
  never ``GeneratorExit``, which Python raises when nobody will finish a generator.
* Every script is idempotent by token. A call whose reply was lost is sent again, on a fresh
  connection; when that fails too the outcome is unknown, and the error says so.
* A deadline is counted from *before* the request was sent, so it never ends after the server's.
* When acquiring is interrupted after something was sent, the token is abandoned before the
  interruption goes on. A failure of that never replaces what interrupted.
"""

from lualock.protocol.holding import (
    ABANDON,
    CLAIM,
    ENQUEUE,
    EXTEND,
    HAND_OVER,
    INSPECT,
    RELEASE,
    disown,
    extend,
    extend_all,
    forsake,
    hand_over,
    inspect,
    is_disowned,
    leave,
    note,
    release,
    resend,
    shortens,
)
from lualock.protocol.passing import ADOPT, adopt, take
from lualock.protocol.replies import LockInfo, conflict
from lualock.protocol.server_clock import ServerClock
from lualock.protocol.steps import (
    LAST_WORD_S,
    Batch,
    Call,
    Clock,
    Later,
    Listen,
    Pending,
    Post,
    Reach,
    Step,
    Steps,
    T,
    Wait,
    watched,
)
from lualock.protocol.terms import Ask, Grant
from lualock.protocol.waiting import (
    ACQUIRE,
    CLAIM_MS,
    LOOK_LATE_S,
    abandon,
    acquire,
    claim,
    enqueue,
    undo,
)

__all__ = [
    "ABANDON",
    "ACQUIRE",
    "ADOPT",
    "CLAIM",
    "CLAIM_MS",
    "ENQUEUE",
    "EXTEND",
    "HAND_OVER",
    "INSPECT",
    "LAST_WORD_S",
    "LOOK_LATE_S",
    "RELEASE",
    "Ask",
    "Batch",
    "Call",
    "Clock",
    "Grant",
    "Later",
    "Listen",
    "LockInfo",
    "Pending",
    "Post",
    "Reach",
    "ServerClock",
    "Step",
    "Steps",
    "T",
    "Wait",
    "abandon",
    "acquire",
    "adopt",
    "claim",
    "conflict",
    "disown",
    "enqueue",
    "extend",
    "extend_all",
    "forsake",
    "hand_over",
    "inspect",
    "is_disowned",
    "leave",
    "note",
    "release",
    "resend",
    "shortens",
    "take",
    "undo",
    "watched",
]
